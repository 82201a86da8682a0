use super::*;

fn variant<'a>(name: &'a str, own: &'a Process, units: impl Fn() -> f64 + 'a) -> Variant<'a> {
    let block = move |length| {
        let mut block = Block::new();
        block.took = length;
        block.units = units();
        if block.units > 0.0 {
            block.latencies.record(50_000)?
        } else {
            block.errors = 7
        }
        Ok(block)
    };
    Variant { name, process: Some(own), block: Box::new(block) }
}

fn requests(rounds: usize) -> Measurement {
    Measurement {
        title: "RR".to_owned(),
        description: String::new(),
        unit: "requests",
        length: Duration::from_millis(1),
        rounds,
        shows_stalls: true,
        saturates: false,
    }
}

#[test]
fn path_without_answers_is_written_read_and_reported() {
    let (mut record, own) = (Record::new("latency"), Process(std::process::id()));
    let calls = std::cell::Cell::new(0);
    // The first block is a warm-up, so this one counts and has no answer.
    let sometimes = || f64::from(u8::from(calls.replace(calls.get() + 1) != 1));
    let paths = [
        variant("direct", &own, || 1.0),
        variant("direct again", &own, sometimes),
        variant("virtual IP", &own, || 0.0),
    ];
    interleave(&mut record, &requests(3), &paths).unwrap();
    // Nothing can be compared with a baseline that has no answers.
    let reversed = [variant("direct", &own, || 0.0), variant("direct again", &own, || 1.0)];
    let title = "CRR".to_owned();
    interleave(&mut record, &Measurement { title, ..requests(3) }, &reversed).unwrap();
    record.measured("rr-p50", f64::INFINITY);
    let directory = tempfile::tempdir().unwrap();
    record.write_into(directory.path()).unwrap();
    let read = Record::read(&directory.path().join("latency.json")).unwrap();
    let nothing = read.comparison("RR").unwrap().path("virtual IP").unwrap();
    assert!(nothing.added.is_none() && nothing.usage.all.is_none() && nothing.usage.between.is_none());
    assert!(read.comparison("CRR").unwrap().path("direct again").unwrap().added.is_none());
    assert!(read.warnings.iter().any(|warning| warning == "RR: virtual IP: 21 errors in 0 requests"));
    let figure = read.figures.iter().find(|figure| figure.id == "rr-p50").unwrap();
    assert_eq!(figure.verdict(), "not measured");
    let shown = crate::render::comparison_table(read.comparison("RR").unwrap());
    assert_eq!(shown.rows[2], ["virtual IP", "-", "-", "-", "-", "-", "-", "-", "0", "-", "-", "-", "21"]);
    let page = directory.path().join("report.html");
    crate::report(directory.path(), &page).unwrap();
    let html = std::fs::read_to_string(page).unwrap();
    assert!(html.contains("virtual IP") && !html.contains("NaN") && !html.contains("inf"));
}

#[test]
fn failing_path_keeps_the_complete_rounds_before() {
    let (mut record, own) = (Record::new("latency"), Process(std::process::id()));
    let calls = std::cell::Cell::new(0);
    let mut failing = variant("virtual IP", &own, || 1.0);
    let measured = std::mem::replace(&mut failing.block, Box::new(|_| anyhow::bail!("refused")));
    let calls = &calls;
    failing.block = Box::new(move |length| {
        anyhow::ensure!(calls.replace(calls.get() + 1) < 3, "refused");
        measured(length)
    });
    let paths = [variant("direct", &own, || 1.0), failing];
    let error = interleave(&mut record, &requests(9), &paths).unwrap_err();
    assert_eq!(format!("{error:#}"), "RR through virtual IP: refused");
    assert_eq!(record.comparison("RR").unwrap().rounds, 2);
}
