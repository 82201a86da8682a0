use super::*;

#[test]
fn record_lists_all_targets_and_marks_unmeasured_ones() {
    let mut record = Record::new("cni");
    record.measured("add-bridge", Estimate::new(0.2, 0.22, 0.3));
    record.measured("del-kernel", 1.5);
    record.remark("add-memory", "no cgroup to measure it in");
    let figure = |id: &str| record.figures.iter().find(|figure| figure.id == id).unwrap();
    assert_eq!(figure("add-bridge").verdict(), "met, within the noise");
    assert_eq!(figure("del-kernel").verdict(), "missed");
    assert_eq!(figure("add-memory").verdict(), "not measured");
    assert_eq!(record.figures.len(), target::of("cni").len());
}

#[test]
fn verdict_within_the_noise_is_marked() {
    let mut record = Record::new("latency");
    record.measured_in_noise("open-p99", Estimate::new(300.0, 400.0, 500.0), Some(700.0));
    record.measured_in_noise("rr-p99", Estimate::new(300.0, 400.0, 500.0), Some(20.0));
    let verdict = |id: &str| record.figures.iter().find(|figure| figure.id == id).unwrap().verdict();
    assert_eq!((verdict("open-p99"), verdict("rr-p99")), ("met, within the noise", "met"));
}

#[test]
fn written_record_reads_back_equal() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dns.json");
    let mut record = Record::new("dns");
    let mut histogram = Histogram::new(3).unwrap();
    (1..=1000_u64).for_each(|micros| histogram.record(micros * 1000).unwrap());
    record.distribution("UDP", "portolan-dns", &histogram);
    record.set("rounds", 30);
    record.finish();
    record.write(&file).unwrap();
    let read = Record::read(&file).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&record).unwrap());
    let median = read.distributions[0].quantiles.iter().find(|[quantile, _]| *quantile >= 0.5).unwrap()[1];
    assert!((499.0..502.0).contains(&median), "{median}");
}

#[test]
fn file_that_is_no_record_is_rejected_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    for (text, expected) in [
        ("", "is not JSON"),
        ("{}", "format is null"),
        (r#"{"format": 99}"#, "format is 99"),
        (r#"{"format": 1}"#, "not a result"),
    ] {
        let file = directory.path().join("a.json");
        std::fs::write(&file, text).unwrap();
        let error = format!("{:#}", Record::read(&file).unwrap_err());
        assert!(error.contains(expected) && error.contains("a.json"), "{text}: {error}");
    }
}

#[test]
fn failed_section_keeps_its_results_and_the_reason() {
    let record = Record::of("cni", |record| {
        record.measured("del-kernel", 1.1);
        anyhow::bail!("ADD of pod-7: no address is left")
    });
    assert_eq!(record.interrupted.as_deref(), Some("ADD of pod-7: no address is left"));
    assert!(record.figures.iter().any(|figure| figure.id == "del-kernel" && figure.measured.is_some()));
}

/// Compares each quantile with the data: a histogram with a fixed range once made the CNI plots empty.
#[test]
fn plotted_quantiles_match_the_data() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut values: Vec<f64> = (0..500).map(|_| 1.0 + 200.0 * random.f64()).collect();
    let mut record = Record::new("cni");
    record.milliseconds("ADD", "portolan", &values);
    values.sort_by(f64::total_cmp);
    let quantiles = &record.distributions[0].quantiles;
    assert!(quantiles.len() > 10, "{quantiles:?}");
    for [quantile, microseconds] in quantiles {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        let index = ((quantile * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1;
        // Rounding of the quantile may select a neighbouring value.
        let near = &values[index.saturating_sub(1)..(index + 2).min(values.len())];
        let is_near = |value: &&f64| (**value * 1e3 / microseconds - 1.0).abs() < 0.002;
        assert!(near.iter().any(|value| is_near(&value)), "{quantile}: {microseconds} of {near:?}");
    }
}
