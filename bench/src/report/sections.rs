//! The parts of the report, in the order of a reader's patience.

use super::markup::{details, list, table, text};
use super::{SECTIONS, answer, plot};
use crate::comparison::{Comparison, Percentile};
use crate::environment::Environment;
use crate::record::{Distribution, Record, Table};
use crate::show;
use crate::target;

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(super) fn page(records: &[Record], raw: &[String]) -> String {
    let sections: String = records.iter().map(section).collect();
    format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width, initial-scale=1\">\
         <title>Does it really cost a millisecond?</title><style>{STYLE}</style></head><body><main>\n\
         <header><p class=kicker>Portolan benchmark report</p><h1>Does it really cost a millisecond?</h1>\n\
         <p class=answer>{}</p>\n<p class=note>{}</p></header>\n{}{}{}{sections}{}{}</main></body></html>\n",
        text(&answer(records)),
        text(&origin(records)),
        interruptions(records),
        added(records),
        asked_for(records),
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

/// Each once, in the order they first come in.
fn distinct<'t>(texts: impl Iterator<Item = &'t str>) -> Vec<&'t str> {
    let mut found = Vec::new();
    for text in texts {
        if !found.contains(&text) {
            found.push(text);
        }
    }
    found
}

/// What must be known before anything is believed.
fn interruptions(records: &[Record]) -> String {
    let (mut said, mut noted) = (Vec::new(), Vec::new());
    for record in records {
        let section = &record.section;
        said.extend(
            record
                .interrupted
                .iter()
                .map(|why| format!("{section}: ended early, {why}: what follows is what had been measured")),
        );
        noted.extend(record.warnings.iter().map(|warning| format!("{section}: {warning}")));
        if record.environment.build == "debug" {
            said.push(format!("{section}: measured with a debug build: figures of it are not worth reading"));
        }
    }
    let of_sections: Vec<&str> =
        SECTIONS.into_iter().filter(|name| !records.iter().any(|r| r.section == *name)).collect();
    if !of_sections.is_empty() {
        said.push(format!("not in this run: {}", of_sections.join(", ")));
    }
    // A few are read, many are a list to open.
    if noted.len() <= 3 {
        said.append(&mut noted);
        return list("warnings", &said);
    }
    let noisy = noted.iter().filter(|warning| warning.contains("the machine is noisy")).count();
    let measured: usize = records.iter().map(|record| record.comparisons.len()).sum();
    if noisy > 0 {
        said.insert(
            0,
            format!(
                "the machine was too noisy in {noisy} of {measured} comparisons to tell small differences"
            ),
        );
    }
    let count = format!("all {} warnings", noted.len());
    list("warnings", &said) + &details(&count, &list("warnings", &noted))
}

/// What each path adds, with intervals.
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
        "Difference of medians from the direct path in the same round, {} rounds, 95% bootstrap interval. Within the grey band, \
         where the direct path differs from itself, nothing is a difference. Left of zero is faster than direct.",
        comparison.rounds
    );
    plot::intervals(heading, &note, "µs at the median", &rows, noise)
}

/// Every figure, also those of sections that were not measured.
fn asked_for(records: &[Record]) -> String {
    let mut html = "<h2>Asked for, measured, met or not</h2>".to_owned();
    for section in SECTIONS {
        let mut shown = match records.iter().find(|record| record.section == section) {
            Some(record) => show::figures(&record.figures, &record.confidence()),
            None => {
                let asked: Vec<_> = target::of(section).iter().map(crate::record::Figure::new).collect();
                show::figures(&asked, "95%")
            }
        };
        let count = |word: &str| shown.rows.iter().filter(|row| row[3].starts_with(word)).count();
        let (met, missed, open) = (count("met"), count("missed"), count("not measured"));
        shown.title = format!("portolan-bench {section}: {met} met, {missed} missed, {open} not measured");
        html += &table(&shown);
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
    html +=
        &record.comparisons.iter().map(|comparison| table(&show::compared(comparison))).collect::<String>();
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
    let mut shown = Table::new("The machine", &["", ""], "");
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
        shown.row([name.to_owned(), value]);
    }
    for record in records {
        let [load, load_after] = record.environment.load;
        let steal = record.environment.steal_seconds[1] - record.environment.steal_seconds[0];
        let said = format!(
            "commit {}; load {load:.2} before, {load_after:.2} after; {steal:.2} s stolen by the hypervisor in {:.0} s",
            record.environment.commit, record.seconds
        );
        shown.row([format!("during {}", record.section), said]);
        let settings: Vec<String> =
            record.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
        shown.row([format!("settings of {}", record.section), settings.join(", ")]);
    }
    for [name, value] in environment.mitigations.iter().chain(&environment.sysctls) {
        shown.row([name.clone(), value.clone()]);
    }
    format!("<h2>Environment</h2>{}", table(&shown))
}

fn reproduce(records: &[Record], raw: &[String]) -> String {
    let commands = distinct(records.iter().map(|record| record.command.as_str())).join("\n");
    format!(
        "<h2>Reproduce it</h2><p>On a fresh machine, as root, in the repository: <code>make setup build</code>, then</p><pre>{}</pre>\
         <p>Raw data beside this report: histograms of every block (<code>.hlog</code>, nanoseconds), a line a block (<code>.csv</code>), \
         everything (<code>.json</code>).</p>{}",
        text(&commands),
        details(&format!("{} files", raw.len()), &list("files", raw))
    )
}
