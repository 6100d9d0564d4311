//! The verbs that connect to a service.

mod cluster;
mod connection;
mod status;
mod upgrade;
mod view;
mod watch;

pub(super) use cluster::ClusterArgs;
pub(super) use connection::ServiceArgs;
pub(super) use upgrade::UpgradeArgs;
pub(super) use watch::WatchArgs;
