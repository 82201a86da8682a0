//! One YAML document: its value as JSON, and the line of each field.

use std::collections::HashMap;

use saphyr::{MarkedYaml, Scalar, ScanError, YamlData, YamlLoader};
use saphyr_parser::{Event, Parser, ScalarStyle, SpannedEventReceiver as _};
use serde_json::{Map, Number, Value};

use super::ParseError;

/// Maximum nesting depth. A manifest has some ten levels, and the code that walks them is recursive. Deeper
/// values are dropped: no field in use is deeper.
pub(super) const MAX_DEPTH: usize = 100;

/// A parsed document with line numbers.
pub(super) struct Document<'a> {
    root: MarkedYaml<'a>,
    /// The line offset of its text in the file.
    offset: usize,
}

/// The documents of a file.
#[derive(Default)]
pub(super) struct Parsed<'a> {
    pub(super) documents: Vec<Document<'a>>,
    /// Documents that are not YAML, among valid ones.
    pub(super) mistakes: Vec<ParseError>,
    /// Lines with values that are nested too deeply and dropped.
    pub(super) too_deep: Vec<usize>,
}

/// Parses a file into its documents. Documents that are empty or only comments are skipped. JSON is YAML. A
/// document that is not YAML does not affect the others.
///
/// # Errors
/// If nothing in it is YAML.
pub(super) fn parse(contents: &[u8]) -> Result<Parsed<'_>, ParseError> {
    let text = std::str::from_utf8(contents).map_err(|e| {
        let before = &contents[..e.valid_up_to()];
        let line = before.split(|byte| *byte == b'\n').count();
        (Some(line), "is not UTF-8 text".to_owned())
    })?;
    let mut parsed = Parsed::default();
    let Err(parse_error) = load(text, 0, &mut parsed) else { return Ok(parsed) };
    parsed = Parsed::default();
    let mut is_any_whole = false;
    for (offset, part) in split(text) {
        match load(part, offset, &mut parsed) {
            Ok(()) => is_any_whole |= !part.trim().is_empty(),
            Err(parse_error) => parsed.mistakes.push(parse_error),
        }
    }
    if is_any_whole { Ok(parsed) } else { Err(parse_error) }
}

/// The text of each document, and its line offset. A line that begins with `---` begins a document, whatever
/// precedes it (YAML 1.2 §9.1.2).
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut offset, mut position) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.starts_with("---") {
            parts.push((offset, &text[start..position]));
            (start, offset) = (position, number);
        }
        position += line.len();
    }
    parts.push((offset, &text[start..]));
    parts
}

/// Like the library, which recurses without a limit, but values nested too deeply become null.
fn load<'a>(text: &'a str, offset: usize, parsed: &mut Parsed<'a>) -> Result<(), ParseError> {
    let parse_error =
        |e: &ScanError| (Some(e.marker().line() + offset), format!("is not YAML: {}", e.info()));
    let mut loader = YamlLoader::default();
    let (mut depth, mut too_deep) = (Depth::default(), Vec::new());
    // Collections that are open inside a dropped one.
    let mut skipped = 0_usize;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| parse_error(&e))?;
        let is_start = matches!(event, Event::SequenceStart(..) | Event::MappingStart(..));
        if skipped > 0 {
            skipped += usize::from(is_start);
            skipped -= usize::from(matches!(event, Event::SequenceEnd | Event::MappingEnd));
            continue;
        }
        let line = span.start.line() + offset;
        let event = if depth.exceeds(&event).map_err(|message| (Some(line), message))? {
            too_deep.push(line);
            skipped = usize::from(is_start);
            Event::Scalar("~".into(), ScalarStyle::Plain, 0, None)
        } else {
            event
        };
        depth.track(&event);
        loader.on_event(event, span);
        if let Some(error) = loader.error() {
            return Err(parse_error(error));
        }
    }
    let is_null = |node: &MarkedYaml<'_>| matches!(node.data, YamlData::Value(Scalar::Null));
    let documents = loader.into_documents().into_iter().filter(|node| !is_null(node));
    parsed.documents.extend(documents.map(|root| Document { root, offset }));
    parsed.too_deep.extend(too_deep.first());
    Ok(())
}

/// The nesting depth of a document.
#[derive(Default)]
struct Depth {
    /// Open collections: their anchor, and the maximum depth inside them so far.
    open: Vec<(usize, usize)>,
    /// The depth of each anchor, for its aliases.
    anchored: HashMap<usize, usize>,
}

impl Depth {
    /// Whether this would be nested too deeply.
    fn exceeds(&self, event: &Event<'_>) -> Result<bool, String> {
        let height = match event {
            Event::SequenceStart(..) | Event::MappingStart(..) => 1,
            Event::Alias(anchor) => self.height_of(*anchor)?,
            _ => 0,
        };
        Ok(self.open.len() + height > MAX_DEPTH)
    }

    fn track(&mut self, event: &Event<'_>) {
        let height = match event {
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                self.open.push((*anchor, 1));
                0
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some((anchor, height)) = self.open.pop() else { return };
                self.set_height(anchor, height);
                height
            }
            Event::Scalar(.., anchor, _) => {
                self.set_height(*anchor, 0);
                0
            }
            Event::Alias(anchor) => self.height_of(*anchor).unwrap_or_default(),
            Event::DocumentStart(_) => {
                self.anchored.clear();
                0
            }
            _ => 0,
        };
        if let Some((_, around)) = self.open.last_mut() {
            *around = (*around).max(height + 1);
        }
    }

    /// An anchor is valid in its document only; the library would find one of another document.
    fn height_of(&self, anchor: usize) -> Result<usize, String> {
        let height = self.anchored.get(&anchor).copied();
        height.ok_or_else(|| "is not YAML: an alias precedes the end of its anchor".to_owned())
    }

    fn set_height(&mut self, anchor: usize, height: usize) {
        // 0 means no anchor.
        if anchor > 0 {
            self.anchored.insert(anchor, height);
        }
    }
}

impl Document<'_> {
    /// The document as the Kubernetes API would receive it.
    pub(super) fn value(&self) -> Value {
        to_json(&self.root)
    }

    /// The line of a field such as `spec.ports[1].port`, or of the nearest existing parent.
    pub(super) fn line_of(&self, path: &str) -> usize {
        let mut node = &self.root;
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
        line + self.offset
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
