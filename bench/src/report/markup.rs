//! HTML elements of the report.

use crate::record::Table;

/// Escapes text for HTML.
pub(super) fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Returns a table that scrolls horizontally on a narrow page.
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
        "<h4>{}</h4><div class=wide><table><thead><tr>{}</tr></thead><tbody>\n\
         {rows}</tbody></table></div>{note}\n",
        text(&table.title),
        cells("th", &table.columns)
    )
}

/// Returns the CSS class that colours a verdict.
fn verdict_class(cell: &str) -> &'static str {
    match cell {
        cell if cell.starts_with("met") => " class=met",
        cell if cell.starts_with("missed") => " class=missed",
        cell if cell.starts_with("not measured") => " class=open",
        _ => "",
    }
}

/// Returns a collapsed part.
pub(super) fn details(summary: &str, inner: &str) -> String {
    format!("<details><summary>{}</summary>{inner}</details>\n", text(summary))
}

/// Returns a list; an empty string without items.
pub(super) fn list(class: &str, items: &[String]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let items: String = items.iter().map(|item| format!("<li>{}</li>", text(item))).collect();
    format!("<ul class={class}>{items}</ul>\n")
}
