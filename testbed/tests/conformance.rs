//! The conformance tables name existing tests.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::{Path, PathBuf};

/// Collects all Rust files below a directory.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns whether a word is the name of a test, and not of a file, a flag or a metric.
fn is_test(word: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    word.len() > 16 && word.contains('_') && word.bytes().all(is_part)
}

fn quoted(row: &str) -> Vec<&str> {
    row.split('`').skip(1).step_by(2).collect()
}

/// Returns whether the sources have a test of this name, in a module or not.
fn has_test(sources: &str, name: &str) -> bool {
    ["", "    "].iter().any(|indent| sources.contains(&format!("#[test]\n{indent}fn {name}()")))
}

#[test]
fn tests_in_the_dns_table_exist_and_every_complaint_has_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = std::fs::read_to_string(root.join("docs/dns-conformance.md")).unwrap();
    let mut files = Vec::new();
    for directory in
        ["dns/src", "dns/tests", "testbed/tests/clients", "testbed/tests/kubernetes", "cli/tests"]
    {
        sources(&root.join(directory), &mut files);
    }
    let text: String = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let mut named = Vec::new();
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        for name in quoted(row).into_iter().filter(|word| is_test(word)) {
            assert!(has_test(&text, name), "{name} in {row}");
            named.push(name);
        }
    }
    assert!(named.len() > 60, "only {} tests are named", named.len());
    for number in 1..=10 {
        let prefix = format!("complaint_{number}_");
        assert!(named.iter().any(|name| name.starts_with(&prefix)), "{prefix}");
    }
    let complaints = text.match_indices("fn complaint_").map(|(at, _)| &text[at + 3..]);
    for name in complaints.filter_map(|rest| rest.split_once('(')).map(|(name, _)| name) {
        assert!(named.contains(&name), "{name} is not in the table");
    }
}

#[test]
fn tests_in_the_proxy_table_exist_in_the_named_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = std::fs::read_to_string(root.join("docs/service-proxy-conformance.md")).unwrap();
    let mut services = Vec::new();
    sources(&root.join("testbed/tests/services"), &mut services);
    let services: String = services.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let mut named = 0;
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let quoted = quoted(row);
        let mut text = services.clone();
        for file in quoted.iter().filter(|word| word.ends_with(".rs")) {
            let near = root.join("testbed/tests").join(file);
            text += &std::fs::read_to_string(if near.is_file() { near } else { root.join(file) }).unwrap();
        }
        for name in quoted.iter().filter(|word| is_test(word)) {
            assert!(has_test(&text, name), "{name} in {row}");
            named += 1;
        }
    }
    assert!(named > 70, "only {named} tests are named");
}

/// Returns the sources of the plugin's tests.
fn plugin_tests(root: &Path) -> String {
    let mut found = Vec::new();
    sources(&root.join("cni-plugin/tests"), &mut found);
    found.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn every_row_of_the_cni_contract_has_an_existing_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = std::fs::read_to_string(root.join("docs/cni-conformance.md")).unwrap();
    let tests = plugin_tests(root);
    for row in 1..=57 {
        let line = table.lines().find(|line| line.starts_with(&format!("| P{row} |")));
        let cell = line.unwrap_or_else(|| panic!("there is no row P{row}")).split('|').nth(4).unwrap();
        let named = quoted(cell);
        assert!(!named.is_empty(), "P{row} has no test");
        for name in named {
            assert!(has_test(&tests, name), "{name} of P{row} does not exist");
        }
    }
}

/// Returns whether a word names a test: its name, or a unique prefix of it and `…`.
fn names_a_test(tests: &str, word: &str) -> bool {
    match word.strip_suffix('…') {
        None => has_test(tests, word),
        Some(start) => {
            let names =
                tests.split("#[test]\n").skip(1).filter_map(|rest| rest.trim_start().strip_prefix("fn "));
            is_test(start) && names.filter(|name| name.starts_with(start)).count() == 1
        }
    }
}

#[test]
fn tests_named_in_the_cni_manual_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("docs/cni-plugin.md")).unwrap();
    let mut unit = Vec::new();
    sources(&root.join("cni-plugin/src"), &mut unit);
    let unit = unit.iter().map(|path| std::fs::read_to_string(path).unwrap());
    let all = plugin_tests(root) + &unit.collect::<String>();
    let is_module =
        |word: &str| word.starts_with(|first: char| first.is_ascii_lowercase()) && !word.contains([' ', ':']);
    let mut named = 0;
    for word in quoted(&page) {
        // `ports::a_port_…`, in a file of that name; or a name alone, in any.
        match word.split_once("::").filter(|(module, _)| is_module(module)) {
            Some((module, name)) => {
                let path = root.join(format!("cni-plugin/tests/attach/{module}.rs"));
                let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{word}: {error}"));
                assert!(names_a_test(&text, name), "{word} is not one test");
            }
            None if is_test(word.trim_end_matches('…')) => {
                assert!(names_a_test(&all, word), "{word} is not one test");
            }
            None => continue,
        }
        named += 1;
    }
    assert!(named > 45, "only {named} tests are named");
}

#[test]
fn every_row_of_the_tables_names_a_test_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for page in ["dns-conformance.md", "service-proxy-conformance.md"] {
        let text = std::fs::read_to_string(root.join("docs").join(page)).unwrap();
        let rows: Vec<&str> =
            text.lines().filter(|line| line.starts_with("| ") && !line.ends_with("| test |")).collect();
        assert!(rows.len() > 50, "only {} rows in {page}", rows.len());
        for row in rows {
            let cell = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
            let has_reason = ["none: ", "differs: ", "differ: ", "the titles above"]
                .iter()
                .any(|why| cell.starts_with(why));
            assert!(has_reason || quoted(cell).into_iter().any(is_test), "no test in {row}");
        }
    }
}

/// Returns the configuration keys that a source file reads: fields of structs, and keys that are read by
/// name.
fn keys(source: &str) -> Vec<String> {
    let (mut keys, mut renamed, mut is_read) = (Vec::new(), None, false);
    for line in source.lines() {
        if let Some((_, rest)) = line.split_once("rename = \"") {
            renamed = rest.split('"').next().map(str::to_owned);
        }
        let field = line.strip_prefix("    pub(super) ").or_else(|| line.strip_prefix("    pub(crate) "));
        let field = field.or_else(|| line.strip_prefix("    ")).and_then(|rest| rest.split_once(": "));
        is_read &= !line.starts_with('}');
        is_read |= line.contains("derive(") && line.contains("Deserialize");
        let is_name = |name: &&str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if let Some((name, _)) = field.filter(|_| is_read).filter(|(name, _)| is_name(name)) {
            let mut words = name.split('_');
            let first = words.next().unwrap_or_default().to_owned();
            let rest = words.map(|word| word[..1].to_uppercase() + &word[1..]);
            keys.push(renamed.take().unwrap_or_else(|| first + &rest.collect::<String>()));
        }
        for taken in line.split("raw").skip(1) {
            let names = taken.split("[\"").skip(1).filter_map(|rest| rest.split('"').next());
            keys.extend(names.take_while(|_| taken.starts_with('[')).map(str::to_owned));
        }
    }
    keys
}

#[test]
fn cni_manual_names_every_configuration_key() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("docs/cni-plugin.md")).unwrap();
    let mut found = Vec::new();
    for file in
        ["netconf", "netconf/wire", "netconf/route", "netconf/bridge", "netconf/bandwidth", "netconf/ports"]
    {
        let path = root.join("cni-plugin/src").join(file).with_extension("rs");
        let source = std::fs::read_to_string(path).unwrap();
        // Without keys of other files, and keys that are only stored.
        found.extend(keys(&source).into_iter().filter(|key| !["single", "cni"].contains(&&**key)));
    }
    for key in
        ["nonMasqueradeCIDRs", "stateDir", "cooldown", "rangeStart", "hostIP", "enabledad", "egressBurst"]
    {
        assert!(found.iter().any(|name| name == key), "the test does not find {key}: {found:?}");
    }
    for key in found {
        let forms = ["`", "\"", "."].map(|before| format!("{before}{key}"));
        let is_named = forms.iter().any(|form| {
            page.match_indices(form).any(|(at, _)| {
                page[at + form.len()..].starts_with(|after: char| !after.is_ascii_alphanumeric())
            })
        });
        assert!(is_named, "docs/cni-plugin.md does not name {key}");
    }
}

#[test]
fn skipped_tests_of_the_official_suite_are_documented_with_reasons() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let (skips, page) = (read("e2e/skip.txt"), read("docs/testing.md"));
    let skips = skips.lines().filter(|line| !line.starts_with('#'));
    let rows: Vec<String> = skips
        .map(|line| line.split_once('\t').unwrap())
        .map(|(tests, reason)| format!("| `{tests}` | {reason} |"))
        .collect();
    let documented: Vec<&str> = page
        .lines()
        .skip_while(|line| *line != "| tests | why |")
        .skip(2)
        .take_while(|line| !line.is_empty())
        .collect();
    assert_eq!(documented, rows);
    assert!(!rows.is_empty());
}
