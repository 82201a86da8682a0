//! `ipam.resolvConf`: reads a file in the format of resolv.conf(5) into the `dns` of a result.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Result, io};

/// Reads the file.
pub(super) fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(io("read ipam.resolvConf", path))?;
    Ok(parse(&text))
}

/// Ignores lines that it does not know, as resolvers do.
fn parse(text: &str) -> Value {
    let mut dns = json!({});
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let values = |words: std::str::SplitWhitespace<'_>| -> Value { words.collect::<Vec<_>>().into() };
        match words.next() {
            Some("nameserver") => {
                let server: Value = words.next().into();
                if let (false, Some(servers)) = (server.is_null(), list(&mut dns, "nameservers")) {
                    servers.push(server);
                }
            }
            Some("domain") => dns["domain"] = words.next().unwrap_or_default().into(),
            // The last line wins.
            Some("search") => dns["search"] = values(words),
            Some("options") => {
                let more = words.map(Value::from);
                if let Some(options) = list(&mut dns, "options") {
                    options.extend(more);
                }
            }
            _ => {}
        }
    }
    dns
}

fn list<'a>(dns: &'a mut Value, key: &str) -> Option<&'a mut Vec<Value>> {
    if dns[key].is_null() {
        dns[key] = json!([]);
    }
    dns[key].as_array_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_has_what_resolvers_read() {
        let text = "# comment\nnameserver 10.96.0.10\nnameserver fd00::10 # second\nnameserver\ndomain example.org\n\
                    search a.example\nsearch b.example c.example\noptions ndots:5 edns0\noptions rotate\nsortlist 1.2.3.4\n";
        let expected = json!({
            "nameservers": ["10.96.0.10", "fd00::10"], "domain": "example.org", "search": ["b.example", "c.example"],
            "options": ["ndots:5", "edns0", "rotate"],
        });
        assert_eq!(parse(text), expected);
        assert_eq!(parse(""), json!({}));
    }
}
