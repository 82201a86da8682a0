//! kube-controller-manager and kube-scheduler.

use anyhow::Result;

use super::{ADMIN, ControlPlane};

/// Controllers that Services need.
const OF_SERVICES: &str = "endpointslice-controller,namespace-controller,serviceaccount-controller";

impl ControlPlane {
    /// Starts the controllers of EndpointSlices, namespaces and service accounts.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn start_controllers(&mut self) -> Result<()> {
        self.run_controllers(&[&format!("--controllers={OF_SERVICES}")])
    }

    /// Starts all controllers and the scheduler. A registered node gets a pod CIDR from 10.244.0.0/16, and
    /// pods of Deployments and DaemonSets.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn start_all_controllers(&mut self) -> Result<()> {
        self.run_controllers(&[
            "--allocate-node-cidrs",
            "--cluster-cidr=10.244.0.0/16",
            "--service-cluster-ip-range=10.96.0.0/12",
            &format!("--root-ca-file={}", self.authority.path("ca.crt").display()),
        ])?;
        let kubeconfig = self.kubeconfig(ADMIN)?;
        let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
        let flags = ["kube-scheduler", &kubeconfig, "--leader-elect=false", "--secure-port=0"];
        self.scheduler = Some(self.run(&flags, "kube-scheduler.log")?);
        Ok(())
    }

    fn run_controllers(&mut self, more: &[&str]) -> Result<()> {
        let kubeconfig = self.kubeconfig(ADMIN)?;
        let flags = [
            "kube-controller-manager".to_owned(),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--service-account-private-key-file={}", self.authority.path("accounts.key").display()),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
        ];
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.controllers = Some(self.run(&flags, "kube-controller-manager.log")?);
        Ok(())
    }
}
