//! One YAML document: its value as JSON, and the line of each field.

use std::collections::HashMap;

use saphyr::{MarkedYaml, Scalar, ScanError, YamlData, YamlLoader};
use saphyr_parser::{Event, Parser, SpannedEventReceiver as _};
use serde_json::{Map, Number, Value};

use super::Mistake;

/// Collections within each other. A manifest has some ten; whoever walks through them recurses.
const MAX_DEPTH: usize = 100;

/// A parsed document that still knows its lines.
pub(super) struct Document<'a>(MarkedYaml<'a>);

/// Parses a file into its documents; those that are empty or comments only are left out. JSON is YAML.
///
/// # Errors
/// When it is not YAML, or nested too deeply.
pub(super) fn parse(contents: &[u8]) -> Result<Vec<Document<'_>>, Mistake> {
    let text = std::str::from_utf8(contents).map_err(|e| {
        let before = &contents[..e.valid_up_to()];
        let line = before.split(|byte| *byte == b'\n').count();
        (Some(line), "is not UTF-8 text".to_owned())
    })?;
    let documents = load(text)?;
    let is_null = |node: &MarkedYaml<'_>| matches!(node.data, YamlData::Value(Scalar::Null));
    Ok(documents.into_iter().filter(|node| !is_null(node)).map(Document).collect())
}

/// As the library does, which recurses as far as it is led.
fn load(text: &str) -> Result<Vec<MarkedYaml<'_>>, Mistake> {
    let mistake = |e: &ScanError| (Some(e.marker().line()), format!("is not YAML: {}", e.info()));
    let mut loader = YamlLoader::default();
    let mut depth = Depth::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| mistake(&e))?;
        depth.follow(&event).map_err(|message| (Some(span.start.line()), message))?;
        loader.on_event(event, span);
        if let Some(error) = loader.error() {
            return Err(mistake(error));
        }
    }
    Ok(loader.into_documents())
}

/// How deep a document is.
#[derive(Default)]
struct Depth {
    /// Collections that have not ended: their anchor, and how many there are within each other in them so far.
    open: Vec<(usize, usize)>,
    /// The same of what has an anchor, which an alias stands for.
    anchored: HashMap<usize, usize>,
}

impl Depth {
    fn follow(&mut self, event: &Event<'_>) -> Result<(), String> {
        let height = match event {
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                self.open.push((*anchor, 1));
                0
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some((anchor, height)) = self.open.pop() else { return Ok(()) };
                self.note(anchor, height);
                height
            }
            Event::Scalar(.., anchor, _) => {
                self.note(*anchor, 0);
                0
            }
            Event::Alias(anchor) => match self.anchored.get(anchor) {
                Some(height) => *height,
                None => return Err("is not YAML: an alias of what is not whole before it".to_owned()),
            },
            Event::DocumentStart(_) => {
                self.anchored.clear();
                0
            }
            _ => 0,
        };
        if self.open.len() + height > MAX_DEPTH {
            return Err(format!("is nested more than {MAX_DEPTH} levels deep"));
        }
        if let Some((_, around)) = self.open.last_mut() {
            *around = (*around).max(height + 1);
        }
        Ok(())
    }

    fn note(&mut self, anchor: usize, height: usize) {
        // 0 is none.
        if anchor > 0 {
            self.anchored.insert(anchor, height);
        }
    }
}

impl Document<'_> {
    /// The document as the Kubernetes API would get it.
    pub(super) fn value(&self) -> Value {
        to_json(&self.0)
    }

    /// The line of a field such as `spec.ports[1].port`, or of the nearest one around it that exists.
    pub(super) fn line_of(&self, path: &str) -> usize {
        let mut node = &self.0;
        let mut line = node.span.start.line();
        for step in
            path.split(['.', '[']).map(|step| step.trim_end_matches(']')).filter(|step| !step.is_empty())
        {
            let found = match &node.data {
                YamlData::Mapping(map) => {
                    let entry = map.iter().find(|(key, _)| key.data.as_str() == Some(step));
                    entry.map(|(key, value)| (key.span.start.line(), value))
                }
                YamlData::Sequence(items) => {
                    let item = step.parse().ok().and_then(|index: usize| items.get(index));
                    item.map(|item| (item.span.start.line(), item))
                }
                _ => None,
            };
            let Some((at, next)) = found else { break };
            (line, node) = (at, next);
        }
        line
    }
}

fn to_json(node: &MarkedYaml<'_>) -> Value {
    match &node.data {
        YamlData::Value(Scalar::Boolean(value)) => Value::Bool(*value),
        YamlData::Value(Scalar::Integer(value)) => Value::Number((*value).into()),
        YamlData::Value(Scalar::FloatingPoint(value)) => {
            Number::from_f64(value.into_inner()).map_or(Value::Null, Value::Number)
        }
        YamlData::Value(Scalar::String(value)) => Value::String(value.to_string()),
        YamlData::Sequence(items) => Value::Array(items.iter().map(to_json).collect()),
        YamlData::Mapping(map) => {
            let entries = map.iter().filter_map(|(key, value)| Some((key_of(key)?, to_json(value))));
            Value::Object(entries.collect::<Map<_, _>>())
        }
        YamlData::Tagged(_, node) => to_json(node),
        YamlData::Value(Scalar::Null)
        | YamlData::Representation(..)
        | YamlData::Alias(_)
        | YamlData::BadValue => Value::Null,
    }
}

/// Keys of labels may look like numbers or booleans.
fn key_of(node: &MarkedYaml<'_>) -> Option<String> {
    match to_json(node) {
        Value::String(key) => Some(key),
        Value::Number(key) => Some(key.to_string()),
        Value::Bool(key) => Some(key.to_string()),
        _ => None,
    }
}
