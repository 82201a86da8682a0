//! Plots as SVG. Colours and fonts come from the page's style sheet, so that they follow the reader's dark
//! mode.

use std::fmt::Write as _;

use super::markup::text;
use super::scale::Scale;
use crate::record::{Chart, Distribution, Estimate};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;

/// Narrow enough for a phone.
const INTERVALS_WIDTH: f64 = 440.0;

/// Widths of a letter of a row's name and of its value (bold), and the gaps to the plot.
const NAME_LETTER: f64 = 6.8;
const NAME_GAP: f64 = 16.0;
const VALUE_LETTER: f64 = 8.4;
const VALUE_GAP: f64 = 12.0;

/// Highlighted paths.
const OURS: [&str; 3] = ["virtual IP", "portolan-proxy", "without polling"];

/// Number of colours in the style sheet.
const COLOURS: usize = 8;

struct Axes<'a> {
    x: Scale,
    y: Scale,
    x_label: &'a str,
    y_label: &'a str,
}

/// Lines over two axes.
pub(super) fn chart(chart: &Chart) -> String {
    let along =
        |index: usize| chart.lines.iter().flat_map(move |line| line.points.iter().map(move |p| p[index]));
    let x = if chart.x.logarithmic { Scale::logarithmic(along(0)) } else { Scale::linear(along(0)) };
    let y = if chart.y.logarithmic { Scale::logarithmic(along(1)) } else { Scale::linear(along(1)) };
    let axes = Axes { x, y, x_label: &chart.x.label, y_label: &chart.y.label };
    let lines: Vec<(&str, Vec<[f64; 2]>)> =
        chart.lines.iter().map(|line| (line.name.as_str(), line.points.clone())).collect();
    figure(&chart.title, &chart.note, &axes.draw(&lines), &legend(lines.iter().map(|(name, _)| *name)))
}

/// Plots the distributions of one group: value by quantile, with equal lengths for each further nine.
pub(super) fn percentiles(title: &str, distributions: &[&Distribution]) -> String {
    let points = |distribution: &Distribution| -> Vec<[f64; 2]> {
        let reachable = distribution.quantiles.iter().filter(|[quantile, _]| *quantile < 1.0);
        reachable.map(|[quantile, value]| [1.0 / (1.0 - quantile), value.max(0.001)]).collect()
    };
    let lines: Vec<(&str, Vec<[f64; 2]>)> =
        distributions.iter().map(|one| (one.name.as_str(), points(one))).collect();
    let all = || lines.iter().flat_map(|(_, points)| points.iter());
    let x = Scale::nines(all().map(|point| point[0]).fold(0.0, f64::max));
    let y = Scale::logarithmic(all().map(|point| point[1]));
    let axes = Axes { x, y, x_label: "requests that take no longer", y_label: "µs" };
    let names = legend(lines.iter().map(|(name, _)| *name));
    figure(&format!("{title}: latency by percentile"), "", &axes.draw(&lines), &names)
}

/// Plots a value with its interval in each row, and a band for the noise.
pub(super) fn intervals(
    title: &str,
    note: &str,
    unit: &str,
    rows: &[(String, Estimate)],
    noise: f64,
) -> String {
    let row_height = 34.0;
    let longest = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    // The value is right of its interval, which may end at the right edge.
    let values = rows.iter().map(|(_, estimate)| format!("{:+.1}", estimate.value).len()).max().unwrap_or(0);
    let right = INTERVALS_WIDTH - VALUE_GAP - values as f64 * VALUE_LETTER;
    let left = NAME_GAP + longest as f64 * NAME_LETTER;
    let height = row_height * rows.len() as f64;
    let ends = rows.iter().flat_map(|(_, estimate)| [estimate.low, estimate.high, estimate.value]);
    let x = Scale::linear(ends.chain([-noise, noise]));
    let at = |value: f64| left + x.at(value) * (right - left);
    let mut svg = String::new();
    let (from, to) = (at(-noise), at(noise));
    write_to(
        &mut svg,
        format_args!("<rect class=noise x={from:.1} y=0 width={:.1} height={height:.0} />", to - from),
    );
    for (value, label) in &x.ticks {
        let (x, class) = (at(*value), if *value == 0.0 { "zero" } else { "grid" });
        write_to(&mut svg, format_args!("<line class={class} x1={x:.1} x2={x:.1} y1=0 y2={height:.0} />"));
        write_to(
            &mut svg,
            format_args!("<text x={x:.1} y={:.0} text-anchor=middle>{label}</text>", height + 18.0),
        );
    }
    let mut y = row_height / 2.0;
    for (name, Estimate { value, low, high }) in rows {
        let colour = if OURS.contains(&name.as_str()) { 2 } else { 0 };
        let (low, mid, high) = (at(*low), at(*value), at(*high));
        write_to(
            &mut svg,
            format_args!("<text x={:.0} y={:.1} text-anchor=end>{}</text>", left - 10.0, y + 4.0, text(name)),
        );
        write_to(
            &mut svg,
            format_args!("<line class=\"bar c{colour}\" x1={low:.1} x2={high:.1} y1={y} y2={y} />"),
        );
        write_to(&mut svg, format_args!("<circle class=\"dot c{colour}\" cx={mid:.1} cy={y} r=6 />"));
        write_to(
            &mut svg,
            format_args!(
                "<text class=value x={:.1} y={:.1}>{value:+.1}</text>",
                high.max(mid) + VALUE_GAP,
                y + 4.0
            ),
        );
        y += row_height;
    }
    let label_y = height + 38.0;
    write_to(
        &mut svg,
        format_args!(
            "<text x={:.0} y={label_y:.0} text-anchor=middle>{}</text>",
            f64::midpoint(left, right),
            text(unit)
        ),
    );
    let svg = format!(
        "<svg class=intervals viewBox=\"0 0 {INTERVALS_WIDTH} {:.0}\" role=img>{svg}</svg>",
        height + 46.0
    );
    figure(title, note, &svg, "")
}

impl Axes<'_> {
    fn draw(&self, lines: &[(&str, Vec<[f64; 2]>)]) -> String {
        let x = |value: f64| LEFT + self.x.at(value) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - self.y.at(value) * (HEIGHT - TOP - BOTTOM);
        let (floor, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        let mut svg = String::new();
        for (value, label) in &self.y.ticks {
            let y = y(*value);
            write_to(&mut svg, format_args!("<line class=grid x1={LEFT} x2={right} y1={y:.1} y2={y:.1} />"));
            write_to(
                &mut svg,
                format_args!("<text x={:.0} y={:.1} text-anchor=end>{label}</text>", LEFT - 8.0, y + 4.0),
            );
        }
        for (value, label) in &self.x.ticks {
            let x = x(*value);
            write_to(&mut svg, format_args!("<line class=grid x1={x:.1} x2={x:.1} y1={TOP} y2={floor} />"));
            write_to(
                &mut svg,
                format_args!("<text x={x:.1} y={:.0} text-anchor=middle>{label}</text>", floor + 18.0),
            );
        }
        let middle = f64::midpoint(LEFT, right);
        let x_label = text(self.x_label);
        write_to(
            &mut svg,
            format_args!("<text x={middle:.0} y={:.0} text-anchor=middle>{x_label}</text>", HEIGHT - 6.0),
        );
        let y_label = text(self.y_label);
        write_to(
            &mut svg,
            format_args!(
                "<text transform=\"translate(14 {:.0}) rotate(-90)\" text-anchor=middle>{y_label}</text>",
                floor / 2.0
            ),
        );
        for (index, (name, points)) in lines.iter().enumerate() {
            let path: String =
                points.iter().map(|[px, py]| format!("{:.1},{:.1} ", x(*px), y(*py))).collect();
            let (colour, name) = (index % COLOURS, text(name));
            write_to(
                &mut svg,
                format_args!(
                    "<polyline class=\"line c{colour}\" points=\"{path}\"><title>{name}</title></polyline>"
                ),
            );
        }
        format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img>{svg}</svg>")
    }
}

fn legend<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let items: String = names
        .enumerate()
        .map(|(index, name)| format!("<span><i class=c{}></i>{}</span>", index % COLOURS, text(name)))
        .collect();
    format!("<div class=legend>{items}</div>")
}

fn figure(title: &str, note: &str, svg: &str, legend: &str) -> String {
    let note = if note.is_empty() { String::new() } else { format!("<p class=note>{}</p>", text(note)) };
    format!(
        "<figure><figcaption>{}</figcaption>{legend}<div class=wide>{svg}</div>{note}</figure>\n",
        text(title)
    )
}

fn write_to(svg: &mut String, piece: std::fmt::Arguments<'_>) {
    svg.write_fmt(piece).expect("writing to a string succeeds");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_right_of_the_widest_interval_is_inside_the_plot() {
        let rows = [("virtual IP".to_owned(), Estimate::new(-2000.0, 1516.0, 2165.8))];
        let svg = intervals("", "", "", &rows, 1.0);
        let value = svg.split("<text class=value x=").nth(1).unwrap();
        let x: f64 = value.split(' ').next().unwrap().parse().unwrap();
        assert!(x + 7.0 * VALUE_LETTER <= INTERVALS_WIDTH, "+1516.0 at {x}");
    }
}
