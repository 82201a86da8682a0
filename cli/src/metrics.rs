//! Parses the Prometheus text format as far as the daemons' metrics need it.

/// Returns the sum over all series of a metric; `None` if it has none.
pub(crate) fn sum(page: &str, metric: &str) -> Option<f64> {
    let values = series(page, metric).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// Returns the largest value of all series of a metric; `None` if it has none.
pub(crate) fn max(page: &str, metric: &str) -> Option<f64> {
    let values = series(page, metric).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.reduce(f64::max)
}

/// Returns the value of a label of the first series of a metric.
pub(crate) fn label<'a>(page: &'a str, metric: &'a str, label: &str) -> Option<&'a str> {
    let line = series(page, metric).next()?;
    line.split_once(&format!("{label}=\""))?.1.split('"').next()
}

fn series<'a>(page: &'a str, metric: &'a str) -> impl Iterator<Item = &'a str> {
    page.lines()
        .filter(move |line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' '])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP a Sums.\n# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 3\nab 7\n\
        portolan_build_info{version=\"0.1.0\"} 1\n";

    #[test]
    fn only_series_of_the_metric_are_summed() {
        assert_eq!(sum(PAGE, "a"), Some(5.0));
        assert_eq!((max(PAGE, "a"), max(PAGE, "b")), (Some(3.0), None));
        assert_eq!(sum(PAGE, "ab"), Some(7.0));
        assert_eq!(sum(PAGE, "b"), None);
        assert_eq!(label(PAGE, "portolan_build_info", "version"), Some("0.1.0"));
    }
}
