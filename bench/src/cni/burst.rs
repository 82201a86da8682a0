//! A burst of concurrent ADDs, as on a node that starts with all its pods.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::Result;
use netns::NetNs;

use super::command::run;
use super::parallel::run_concurrently;
use super::setup::{Kind, ONE_OTHER_POD, Setup};
use crate::interrupt;
use crate::record::{Record, Table};
use crate::statistics::{bootstrap, paired};

/// One burst.
struct Burst {
    adds_per_second: f64,
    dels_per_second: f64,
    failures: usize,
    duplicates: usize,
}

/// Runs `bursts` bursts of `pods` ADDs and then DELs with `portolan-cni` and, if installed, the reference
/// bridge.
pub(super) fn measure(record: &mut Record, has_bridge: bool, pods: usize, bursts: usize) -> Result<()> {
    let mut kinds = vec![Kind::Portolan { masquerade: true }];
    kinds.extend(has_bridge.then_some(Kind::Bridge));
    let mut results: [Vec<Burst>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..bursts {
        for (kind, results) in kinds.iter().zip(&mut results) {
            interrupt::check()?;
            results.push(burst(&Setup::new(*kind, ONE_OTHER_POD)?, pods)?);
        }
    }
    let columns = ["plugin", "ADDs a second", "DELs a second", "failures", "duplicates"];
    let mut table = Table::new(&format!("{pods} pods at once"), &columns, "");
    let adds = |results: &[Burst]| results.iter().map(|burst| burst.adds_per_second).collect::<Vec<_>>();
    for (kind, results) in kinds.iter().zip(&results) {
        let dels: Vec<f64> = results.iter().map(|burst| burst.dels_per_second).collect();
        let count = |what: fn(&Burst) -> usize| results.iter().map(what).sum::<usize>().to_string();
        let rate = |values: &[f64]| {
            let estimate = bootstrap(values);
            format!("{:.0} ({:.0} to {:.0})", estimate.value, estimate.low, estimate.high)
        };
        table.row([
            super::setup::name(*kind, ONE_OTHER_POD),
            rate(&adds(results)),
            rate(&dels),
            count(|burst| burst.failures),
            count(|burst| burst.duplicates),
        ]);
    }
    record.tables.push(table);
    #[expect(clippy::cast_precision_loss, reason = "a count of a few hundred")]
    let failed = results[0].iter().map(|burst| burst.failures + burst.duplicates).sum::<usize>() as f64;
    record.measured("burst-failures", failed);
    record.remark("burst-failures", format!("{pods} ADDs, {bursts} times"));
    if has_bridge {
        let rate = paired(&adds(&results[0]), &adds(&results[1]), |ours, theirs| ours / theirs);
        record.measured("burst-rate", rate);
        record.remark("burst-rate", format!("{pods} ADDs, {bursts} times"));
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a count of a few hundred")]
fn burst(setup: &Setup, pods: usize) -> Result<Burst> {
    let names: Vec<String> = (0..pods).map(|number| format!("pod-{number}")).collect();
    let paths = names.iter().map(|name| setup.node.add_netns(name)).collect::<Result<Vec<PathBuf>>>()?;
    let run_all = |command: &'static str| {
        setup.node.run(|| {
            let (results, took) = run_concurrently(pods, |pod| {
                let call = setup.call(command, &names[pod], &paths[pod]);
                run(&call).map(|(result, _)| result["ips"][0]["address"].to_string())
            });
            (results, pods as f64 / took.as_secs_f64())
        })
    };
    let (added, adds_per_second) = run_all("ADD");
    let addresses: Vec<String> = added.into_iter().filter_map(Result::ok).collect();
    let distinct = addresses.iter().collect::<HashSet<_>>().len();
    let (_, dels_per_second) = run_all("DEL");
    setup.node.run(|| paths.iter().try_for_each(NetNs::remove_named))?;
    Ok(Burst {
        adds_per_second,
        dels_per_second,
        failures: pods - addresses.len(),
        duplicates: addresses.len() - distinct,
    })
}
