//! What the daemons share: start-up, logging, drain, readiness, and HTTP pages.

pub mod admin;
pub mod build_info;
pub mod config_file;
pub mod drain;
pub mod file_limit;
pub mod handover;
pub mod log;
pub mod metrics;
pub mod page;
pub mod program;
pub mod readiness;
pub mod service_manager;
pub mod socket;
