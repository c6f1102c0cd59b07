//! What a source of configuration that has only what is wanted is asked for.

use mesh_xds::model::GatewayDestination;

use super::target::Destination;
use crate::config::{Asked, Board};
use crate::snapshot::{Source, service_names};
use crate::{Error, ErrorKind};

/// The names that a destination may have.
pub(super) fn destination(destination: &Destination, source: &Source) -> Vec<String> {
    let own = source.workload();
    match destination {
        Destination::Addr(address) => {
            vec![format!("{}/{}", own.network(), address.ip().to_canonical())]
        }
        Destination::Host { name, .. } => {
            service_names(name, own.namespace(), source.cluster_domain())
        }
    }
}

/// The name of a waypoint.
pub(super) fn waypoint(waypoint: &GatewayDestination) -> Vec<String> {
    match waypoint {
        GatewayDestination::Hostname(name) => vec![name.to_string()],
        GatewayDestination::Address { network, ip } => {
            vec![format!("{network}/{}", ip.to_canonical())]
        }
        _ => Vec::new(),
    }
}

/// Wants them all; whether some answer is still to come.
///
/// # Errors
///
/// There is no room for more names.
pub(super) fn want(board: &Board, names: &[String]) -> Result<bool, Error> {
    let mut waits = false;
    for name in names {
        match board.want(name) {
            Asked::Waiting => waits = true,
            Asked::Absent => {}
            Asked::Refused(why) => {
                let detail = format!("{name}: {why}");
                return Err(Error::new(ErrorKind::Overloaded).with_detail(detail));
            }
        }
    }
    Ok(waits)
}

/// Nobody knows whether the mesh has it, so nothing goes out.
pub(super) fn unanswered(names: &[String]) -> Error {
    Error::new(ErrorKind::NotReady).with_detail(format!(
        "the control plane has not answered for {}",
        names.join(", ")
    ))
}
