//! Axis scales: from values to positions, and the ticks.

/// One axis.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
    /// Values and labels of the ticks.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Scale {
    /// A linear scale that starts at zero unless a value is below.
    pub(super) fn linear(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = ends(values, 0.0);
        let step = round_step((high - low).max(1e-9) / 5.0);
        let (first, last) = ((low / step).floor(), (high / step).ceil().max((low / step).floor() + 1.0));
        let count = (last - first).round();
        let mut ticks = Vec::new();
        let mut number = 0.0;
        while number <= count {
            let value = (first + number) * step;
            ticks.push((value, label(value)));
            number += 1.0;
        }
        Self { low: first * step, high: last * step, logarithmic: false, ticks }
    }

    /// A logarithmic scale with ticks at decades, and at 2 and 5 if there are few decades.
    pub(super) fn logarithmic(values: impl Iterator<Item = f64> + Clone) -> Self {
        let positive = values.filter(|value| *value > 0.0);
        let smallest = positive.clone().fold(f64::MAX, f64::min).min(1e12);
        let (_, largest) = ends(positive, smallest);
        let (low, high) = (below(smallest), above(largest.max(smallest * 1.01)));
        let decades = (high / low).log10();
        let mut ticks = Vec::new();
        let mut decade = 10_f64.powf(low.log10().floor());
        while decade <= high * 1.001 {
            let factors: &[f64] = if decades < 3.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let here = factors.iter().map(|factor| factor * decade);
            ticks.extend(here.filter(|&v| v >= low * 0.999 && v <= high * 1.001).map(|v| (v, label(v))));
            decade *= 10.0;
        }
        Self { low, high, logarithmic: true, ticks }
    }

    /// A scale for quantiles with equal lengths for each further nine. Values are 1 / (1 - quantile).
    pub(super) fn nines(high: f64) -> Self {
        let names =
            [(2.0, "50%"), (10.0, "90%"), (100.0, "99%"), (1e3, "99.9%"), (1e4, "99.99%"), (1e5, "99.999%")];
        let high = high.clamp(1e3, 1e6);
        let ticks = names.iter().filter(|(at, _)| *at <= high).map(|&(at, name)| (at, name.to_owned()));
        Self { low: 1.0, high, logarithmic: true, ticks: ticks.collect() }
    }

    /// Returns the position of a value: 0 at the low end, 1 at the high end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let position = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        position.clamp(0.0, 1.0)
    }
}

fn ends(values: impl Iterator<Item = f64>, start: f64) -> (f64, f64) {
    values.fold((start, start), |(low, high), value| (low.min(value), high.max(value)))
}

/// Returns 1, 2 or 5 times a power of ten, at least `step`.
fn round_step(step: f64) -> f64 {
    above(step)
}

fn above(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * decade >= value * 0.999);
    factor.unwrap_or(10.0) * decade
}

fn below(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let factor = [5.0, 2.0, 1.0].into_iter().find(|factor| factor * decade <= value * 1.001);
    factor.unwrap_or(1.0) * decade
}

/// `1,000`, `50`, `0.5`.
fn label(value: f64) -> String {
    let text = if value.abs() >= 1.0 || value == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |digits| ("-", digits));
    if digits.len() < 4 || digits.contains('.') {
        return text;
    }
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_all_values() {
        let linear = Scale::linear([-29.7, 149.1].into_iter());
        let labels: Vec<&str> = linear.ticks.iter().map(|(_, label)| label.as_str()).collect();
        assert_eq!(labels, ["-50", "0", "50", "100", "150"]);
        assert!(linear.at(-29.7) > 0.0 && linear.at(149.1) < 1.0);
        let logarithmic = Scale::logarithmic([17.0, 12_050.0].into_iter());
        assert_eq!(logarithmic.ticks.first().unwrap().1, "10");
        assert_eq!(logarithmic.ticks.last().unwrap().1, "20,000");
        assert_eq!(Scale::nines(1e4).ticks.len(), 5);
    }

    #[test]
    fn scale_without_values_is_valid() {
        assert!(Scale::linear(std::iter::empty()).ticks.len() >= 2);
        assert!(Scale::logarithmic(std::iter::empty()).at(1.0).is_finite());
    }
}
