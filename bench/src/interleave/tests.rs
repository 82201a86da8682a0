use super::*;

fn contender<'a>(name: &'a str, own: &'a Process, units: impl Fn() -> f64 + 'a) -> Contender<'a> {
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
    Contender { name, process: Some(own), block: Box::new(block) }
}

fn requests(rounds: usize) -> Measurement {
    Measurement {
        title: "RR".to_owned(),
        words: String::new(),
        unit: "requests",
        length: Duration::from_millis(1),
        rounds,
        shows_stalls: true,
        saturates: false,
    }
}

#[test]
fn a_path_that_answers_nothing_can_be_written_read_and_reported() {
    let (mut record, own) = (Record::new("latency"), Process(std::process::id()));
    let calls = std::cell::Cell::new(0);
    // The first block warms up, so one that counts is without an answer.
    let sometimes = || f64::from(u8::from(calls.replace(calls.get() + 1) != 1));
    let paths = [
        contender("direct", &own, || 1.0),
        contender("direct again", &own, sometimes),
        contender("virtual IP", &own, || 0.0),
    ];
    interleave(&mut record, &requests(3), &paths).unwrap();
    // Beside a first path without an answer nothing can be compared either.
    let reversed = [contender("direct", &own, || 0.0), contender("direct again", &own, || 1.0)];
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
    let shown = crate::show::compared(read.comparison("RR").unwrap());
    assert_eq!(shown.rows[2], ["virtual IP", "-", "-", "-", "-", "-", "-", "-", "0", "-", "-", "-", "21"]);
    let page = directory.path().join("report.html");
    crate::report(directory.path(), &page).unwrap();
    let html = std::fs::read_to_string(page).unwrap();
    assert!(html.contains("virtual IP") && !html.contains("NaN") && !html.contains("inf"));
}

#[test]
fn a_path_that_fails_leaves_the_rounds_before_it() {
    let (mut record, own) = (Record::new("latency"), Process(std::process::id()));
    let calls = std::cell::Cell::new(0);
    let mut failing = contender("virtual IP", &own, || 1.0);
    let measured = std::mem::replace(&mut failing.block, Box::new(|_| anyhow::bail!("refused")));
    let calls = &calls;
    failing.block = Box::new(move |length| {
        anyhow::ensure!(calls.replace(calls.get() + 1) < 3, "refused");
        measured(length)
    });
    let paths = [contender("direct", &own, || 1.0), failing];
    let error = interleave(&mut record, &requests(9), &paths).unwrap_err();
    assert_eq!(format!("{error:#}"), "RR through virtual IP: refused");
    assert_eq!(record.comparison("RR").unwrap().rounds, 2);
}
