use super::*;
use crate::comparison::Comparison;
use crate::comparison::tests::path;

fn answer_of(requests: Estimate, connections: Estimate, rounds: usize) -> String {
    answer_with_noise(2.0, requests, connections, rounds)
}

/// The answer for a direct path with an A/A noise of `noise`, µs.
fn answer_with_noise(noise: f64, requests: Estimate, connections: Estimate, rounds: usize) -> String {
    let mut record = Record::new("latency");
    record.comparisons = [("RR", requests), ("CRR", connections)]
        .map(|(title, added)| Comparison {
            title: title.to_owned(),
            load: String::new(),
            unit: "requests".to_owned(),
            rounds,
            block_ms: 200,
            saturated: false,
            paths: vec![
                path("direct", 0, None),
                path("direct again", 0, Some(Estimate::new(-noise, 0.0, 1.0))),
                path("virtual IP", 0, Some(added)),
            ],
        })
        .into();
    answer(&[record])
}

#[test]
fn answer_is_the_worse_of_both_loads_with_the_confidence_of_the_run() {
    let (little, much) = (Estimate::new(10.0, 12.0, 14.0), Estimate::new(1400.0, 1500.0, 1600.0));
    let answered = answer_of(little, Estimate::new(190.0, 200.0, 210.0), 40);
    assert_eq!(
        answered,
        "No: a Service adds 12.0 µs at the median (95%: +10.0 to +14.0) to a request on an open connection, \
         and adds 200.0 µs at the median (95%: +190.0 to +210.0) to one with a connection of its own."
    );
    assert!(answer_of(little, much, 40).starts_with("Yes: a Service adds 12.0"));
    assert!(answer_of(little, Estimate::new(900.0, 950.0, 1100.0), 40).starts_with("Not shown: "));
    let unclear = answer_of(little, Estimate::new(-1.0, 1.0, 3.0), 3);
    assert!(unclear.contains("(range of 3: +10.0 to +14.0)"), "{unclear}");
    assert!(unclear.contains("makes no difference to one with a connection of its own"), "{unclear}");
    assert_eq!(answer(&[]), "This run has not measured what a Service adds to a request.");
}

#[test]
fn answer_is_not_shown_when_noise_or_too_few_rounds_could_reverse_it() {
    let (little, saved) = (Estimate::new(10.0, 12.0, 14.0), Estimate::new(-2155.0, -900.0, -109.0));
    for (noise, added, rounds) in
        [(1718.0, saved, 40), (990.0, little, 40), (2.0, little, 1), (2.0, little, 5)]
    {
        let answer = answer_with_noise(noise, added, little, rounds);
        assert!(answer.starts_with("Not shown: "), "{answer}");
        let why = format!("the direct path differs from itself by up to {noise:.1} µs, in {rounds} rounds.");
        assert!(answer.ends_with(&why), "{answer}");
    }
    let much = Estimate::new(1400.0, 1500.0, 1600.0);
    assert!(answer_with_noise(500.0, much, much, 40).starts_with("Not shown: "));
    assert!(answer_with_noise(300.0, much, much, 40).starts_with("Yes: "));
    assert!(answer_of(little, much, 3).starts_with("Not shown: "));
}
