//! Manifests of Services.

use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::Path;

use anyhow::{Context as _, Result};
use testbed::{Pod, wait_for};

/// Port of the endpoints of [`write`], which do not exist.
pub(crate) const PORT: u16 = 9092;

/// Writes Services `s-0` and so on, each with a slice, `in_files` of them in one file.
pub(crate) fn write(directory: &Path, services: usize, endpoints: usize, in_files: usize) -> Result<()> {
    for file in 0..services / in_files {
        let mut text = String::new();
        for number in file * in_files..(file + 1) * in_files {
            let ip = format!("10.97.{}.{}", number / 250, number % 250 + 1);
            let addresses = (0..endpoints).map(|endpoint| {
                let at = number * endpoints + endpoint;
                format!("10.{}.{}.{}", 128 + at / 62_500, at / 250 % 250, at % 250 + 1)
            });
            write!(text, "{}", manifest(&format!("s-{number}"), &ip, PORT, addresses))?;
        }
        let path = directory.join(format!("services-{file}.yaml"));
        // Rename into place, so that the proxy never reads a partial file.
        let temporary = directory.join(".services");
        std::fs::write(&temporary, text)?;
        std::fs::rename(&temporary, &path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Returns a Service with a slice of these addresses.
pub(crate) fn manifest(
    name: &str,
    cluster_ip: &str,
    port: u16,
    addresses: impl Iterator<Item = String>,
) -> String {
    let endpoints: String = addresses.map(|address| format!("- {{addresses: [{address}]}}\n")).collect();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{clusterIP: {cluster_ip}, ports: \
         [{{port: 80, targetPort: {port}}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: \
         {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{{port: \
         {port}}}]\nendpoints:\n{endpoints}"
    )
}

/// Waits until a connection to the address succeeds.
pub(crate) fn wait(client: &Pod, address: &str, port: u16) -> Result<()> {
    wait_for(&format!("{address}:{port}"), || {
        client.netns.run(|| Ok(TcpStream::connect((address, port)).map(|_stream| ())?))?
    })
}
