//! HTML in small pieces.

use crate::record::Table;

/// Text, with what means something in HTML made harmless.
pub(super) fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A table that scrolls sideways where the page is too narrow for it.
pub(super) fn table(table: &Table) -> String {
    let cells = |tag: &str, cells: &[String]| -> String {
        cells.iter().map(|cell| format!("<{tag}{}>{}</{tag}>", verdict_class(cell), text(cell))).collect()
    };
    let rows: String = table.rows.iter().map(|row| format!("<tr>{}</tr>\n", cells("td", row))).collect();
    let note = if table.note.is_empty() {
        String::new()
    } else {
        format!("<p class=note>{}</p>", text(&table.note))
    };
    format!(
        "<h4>{}</h4><div class=wide><table><thead><tr>{}</tr></thead><tbody>\n{rows}</tbody></table></div>{note}\n",
        text(&table.title),
        cells("th", &table.columns)
    )
}

/// A verdict is seen before it is read.
fn verdict_class(cell: &str) -> &'static str {
    match cell {
        cell if cell.starts_with("met") => " class=met",
        cell if cell.starts_with("missed") => " class=missed",
        cell if cell.starts_with("not measured") => " class=open",
        _ => "",
    }
}

/// A part that is shown on demand.
pub(super) fn details(summary: &str, inner: &str) -> String {
    format!("<details><summary>{}</summary>{inner}</details>\n", text(summary))
}

/// A list of sentences; nothing of none.
pub(super) fn list(class: &str, items: &[String]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let items: String = items.iter().map(|item| format!("<li>{}</li>", text(item))).collect();
    format!("<ul class={class}>{items}</ul>\n")
}
