//! The parts of the report, the most important first.

use super::markup::{details, list, table, text};
use super::{SECTIONS, answer, plot};
use crate::comparison::{Comparison, Percentile};
use crate::environment::Environment;
use crate::record::{Distribution, Record, Table};
use crate::render;
use crate::target;

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(super) fn page(records: &[Record], raw: &[String]) -> String {
    let sections: String = records.iter().map(section).collect();
    format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\
         <title>Does it really cost a millisecond?</title><style>{STYLE}</style></head><body><main>\n\
         <header><p class=kicker>Portolan benchmark report</p><h1>Does it really cost a millisecond?</h1>\n\
         <p class=answer>{}</p>\n<p class=note>{}</p></header>\n{}{}{}{sections}{}{}</main></body></html>\n",
        text(&answer(records)),
        text(&origin(records)),
        interruptions(records),
        added(records),
        targets(records),
        environments(records),
        reproduce(records, raw),
    )
}

fn origin(records: &[Record]) -> String {
    let Some(first) = records.first() else { return String::new() };
    let build = &first.environment.build;
    let commits = distinct(records.iter().map(|record| record.environment.commit.as_str()));
    let word = if commits.len() == 1 { "commit" } else { "commits" };
    let commits = commits.join(", ");
    format!("{}, {word} {commits}, {build} build, {}", first.environment.summary(), first.started)
}

/// Returns distinct texts in the order of first occurrence.
fn distinct<'t>(texts: impl Iterator<Item = &'t str>) -> Vec<&'t str> {
    let mut found = Vec::new();
    for text in texts {
        if !found.contains(&text) {
            found.push(text);
        }
    }
    found
}

/// Returns what limits the validity of the results.
fn interruptions(records: &[Record]) -> String {
    let (mut notes, mut warnings) = (Vec::new(), Vec::new());
    for record in records {
        let section = &record.section;
        notes.extend(
            record
                .interrupted
                .iter()
                .map(|why| format!("{section}: ended early, {why}: the results are partial")),
        );
        warnings.extend(record.warnings.iter().map(|warning| format!("{section}: {warning}")));
        if record.environment.build == "debug" {
            notes.push(format!("{section}: measured with a debug build: its figures are not meaningful"));
        }
    }
    let of_sections: Vec<&str> =
        SECTIONS.into_iter().filter(|name| !records.iter().any(|r| r.section == *name)).collect();
    if !of_sections.is_empty() {
        notes.push(format!("not in this run: {}", of_sections.join(", ")));
    }
    // More than three warnings are collapsed.
    if warnings.len() <= 3 {
        notes.append(&mut warnings);
        return list("warnings", &notes);
    }
    let noisy = warnings.iter().filter(|warning| warning.contains("the machine is noisy")).count();
    let measured: usize = records.iter().map(|record| record.comparisons.len()).sum();
    if noisy > 0 {
        notes.insert(
            0,
            format!(
                "the machine was too noisy in {noisy} of {measured} comparisons to tell small differences"
            ),
        );
    }
    let count = format!("all {} warnings", warnings.len());
    list("warnings", &notes) + &details(&count, &list("warnings", &warnings))
}

/// Returns what each path adds, with intervals.
fn added(records: &[Record]) -> String {
    let mut html = String::new();
    for (section, title, heading) in [
        ("latency", "RR", "Added to a request on an open connection"),
        ("latency", "CRR", "Added to a request with a connection of its own"),
        ("proxy", "RR", "Beside its peers: added to a request on an open connection"),
        ("proxy", "CRR", "Beside its peers: added to a request with a connection of its own"),
    ] {
        let record = records.iter().find(|record| record.section == section);
        if let Some(comparison) = record.and_then(|record| record.comparison(title)) {
            html += &added_by(comparison, heading);
        }
    }
    if html.is_empty() { html } else { format!("<h2>Added latency</h2>{html}") }
}

fn added_by(comparison: &Comparison, heading: &str) -> String {
    let rows: Vec<_> =
        comparison.paths.iter().filter_map(|path| Some((path.path.clone(), path.added?.p50))).collect();
    let noise = comparison.noise(Percentile::P50).unwrap_or(0.0);
    let note = format!(
        "Difference of medians from the direct path in the same round, {} rounds, 95% bootstrap interval. \
         The grey band is the A/A noise of the direct path: values inside are not significant. Left of zero \
         is faster than direct.",
        comparison.rounds
    );
    plot::intervals(heading, &note, "µs at the median", &rows, noise)
}

/// Returns all figures that have a target, also of sections that were not measured.
fn targets(records: &[Record]) -> String {
    let mut html = "<h2>Targets and measured values</h2>".to_owned();
    for section in SECTIONS {
        let mut figures = match records.iter().find(|record| record.section == section) {
            Some(record) => render::figures(&record.figures, &record.confidence()),
            None => {
                let unmeasured: Vec<_> = target::of(section).iter().map(crate::record::Figure::new).collect();
                render::figures(&unmeasured, "95%")
            }
        };
        let count = |word: &str| figures.rows.iter().filter(|row| row[3].starts_with(word)).count();
        let (met, missed, open) = (count("met"), count("missed"), count("not measured"));
        figures.title = format!("portolan-bench {section}: {met} met, {missed} missed, {open} not measured");
        html += &table(&figures);
    }
    html
}

fn section(record: &Record) -> String {
    let mut html = format!("<h2>{}</h2><p><code>{}</code></p>", text(&record.section), text(&record.command));
    html += &list("open", &record.not_measured);
    html += &record.charts.iter().map(plot::chart).collect::<String>();
    let mut groups: Vec<&str> = Vec::new();
    for distribution in &record.distributions {
        if !groups.contains(&distribution.group.as_str()) {
            groups.push(&distribution.group);
        }
    }
    for (index, group) in groups.iter().enumerate() {
        let of_group: Vec<&Distribution> =
            record.distributions.iter().filter(|d| d.group == *group).collect();
        let drawn = plot::percentiles(group, &of_group);
        html += &if index < 4 { drawn } else { details(&format!("{group}: latency by percentile"), &drawn) };
    }
    html += &record
        .comparisons
        .iter()
        .map(|comparison| table(&render::comparison_table(comparison)))
        .collect::<String>();
    html += &record.tables.iter().map(table).collect::<String>();
    for configuration in &record.configurations {
        let summary = format!("Configuration of {}, {}", configuration.name, configuration.version);
        html += &details(&summary, &format!("<pre>{}</pre>", text(&configuration.text)));
    }
    html
}

fn environments(records: &[Record]) -> String {
    let Some(record) = records.first() else { return String::new() };
    let environment = &record.environment;
    let mut properties = Table::new("The machine", &["", ""], "");
    let Environment { cpu, smt, governor, hypervisor, kernel, clock_source, system, version, build, .. } =
        environment;
    for (name, value) in [
        ("processor", format!("{} x {cpu}", environment.cores)),
        ("threads sharing a core", smt.clone()),
        ("frequency governor", governor.clone()),
        ("virtual machine", hypervisor.clone()),
        ("memory", format!("{} MiB", environment.memory_mib)),
        ("kernel", kernel.clone()),
        ("clock", clock_source.clone()),
        ("system", system.clone()),
        ("Portolan", format!("{version}, {build}")),
    ] {
        properties.row([name.to_owned(), value]);
    }
    for record in records {
        let [load, load_after] = record.environment.load;
        let steal = record.environment.steal_seconds[1] - record.environment.steal_seconds[0];
        let usage = format!(
            "commit {}; load {load:.2} before, {load_after:.2} after; {steal:.2} s stolen by the \
             hypervisor in {:.0} s",
            record.environment.commit, record.seconds
        );
        properties.row([format!("during {}", record.section), usage]);
        let settings: Vec<String> =
            record.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
        properties.row([format!("settings of {}", record.section), settings.join(", ")]);
    }
    for [name, value] in environment.mitigations.iter().chain(&environment.sysctls) {
        properties.row([name.clone(), value.clone()]);
    }
    format!("<h2>Environment</h2>{}", table(&properties))
}

fn reproduce(records: &[Record], raw: &[String]) -> String {
    let commands = distinct(records.iter().map(|record| record.command.as_str())).join("\n");
    format!(
        "<h2>Reproduce it</h2><p>On a fresh machine, as root, in the repository: <code>make setup \
         build</code>, then</p><pre>{}</pre>\
         <p>Raw data beside this report: histograms of every block (<code>.hlog</code>, nanoseconds), \
         a line for each block (<code>.csv</code>), all results (<code>.json</code>).</p>{}",
        text(&commands),
        details(&format!("{} files", raw.len()), &list("files", raw))
    )
}
