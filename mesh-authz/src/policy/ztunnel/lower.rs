use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Authorization, EmptyMatch, Match, Network, ServiceAccount};
use crate::error::{Error, ErrorKind};
use crate::matcher::{StringMatch, canonical_net, parse_cidr};
use crate::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};

impl Authorization {
    /// Checks the policy and lowers it; `empty` says how a match without fields counts.
    ///
    /// # Errors
    ///
    /// [`Error`] names the first field with an address, a port or a string that can not be meant.
    /// istio/ztunnel drops such values silently, which can widen access.
    pub fn lower(&self, empty: EmptyMatch) -> Result<Policy, Error> {
        let empty = match (empty, &self.action) {
            (EmptyMatch::NeverMatches, _) | (EmptyMatch::AsLost, Action::Allow) => Expr::FALSE,
            (EmptyMatch::AsLost, _) => Expr::TRUE,
        };
        let mut rules = Vec::with_capacity(self.rules.len());
        for (r, rule) in self.rules.iter().enumerate() {
            let mut all = Vec::with_capacity(rule.clauses.len());
            for (c, clause) in rule.clauses.iter().enumerate() {
                if clause.matches.is_empty() {
                    continue;
                }
                let mut any = Vec::with_capacity(clause.matches.len());
                for (m, one) in clause.matches.iter().enumerate() {
                    let field = format!("rules[{r}].clauses[{c}].matches[{m}]");
                    let parts = one.lower(&field)?;
                    any.push(if parts.is_empty() {
                        empty.clone()
                    } else {
                        Expr::All(parts)
                    });
                }
                all.push(Expr::Any(any));
            }
            rules.push(Rule::new(Expr::All(all)));
        }
        let name = PolicyName::new(self.namespace.as_str(), self.name.as_str());
        Ok(Policy::new(name, self.action.clone(), rules).with_dry_run(self.dry_run))
    }
}

impl Match {
    fn lower(&self, field: &str) -> Result<Vec<Expr>, Error> {
        let mut all = Vec::new();
        let mut part = |name: &str, any: Vec<Expr>| {
            if any.is_empty() {
                return;
            }
            let any = Expr::Any(any);
            all.push(if name.starts_with("not") {
                Expr::Not(Box::new(any))
            } else {
                any
            });
        };
        let strings = [
            ("namespaces", &self.namespaces),
            ("notNamespaces", &self.not_namespaces),
        ];
        for (name, values) in strings {
            part(name, each(values, field, name, string(Matcher::Namespace))?);
        }
        let accounts = [
            ("serviceAccounts", &self.service_accounts),
            ("notServiceAccounts", &self.not_service_accounts),
        ];
        for (name, values) in accounts {
            part(name, each(values, field, name, service_account)?);
        }
        let strings = [
            ("principals", &self.principals),
            ("notPrincipals", &self.not_principals),
        ];
        for (name, values) in strings {
            part(name, each(values, field, name, string(Matcher::Principal))?);
        }
        let sources = [
            ("sourceIps", &self.source_ips),
            ("notSourceIps", &self.not_source_ips),
        ];
        for (name, values) in sources {
            part(name, each(values, field, name, network(Matcher::SourceIp))?);
        }
        let destinations = [
            ("destinationIps", &self.destination_ips),
            ("notDestinationIps", &self.not_destination_ips),
        ];
        for (name, values) in destinations {
            part(
                name,
                each(values, field, name, network(Matcher::DestinationIp))?,
            );
        }
        let ports = [
            ("destinationPorts", &self.destination_ports),
            ("notDestinationPorts", &self.not_destination_ports),
        ];
        for (name, values) in ports {
            part(name, each(values, field, name, port)?);
        }
        Ok(all)
    }
}

fn each<T>(
    values: &[T],
    field: &str,
    name: &str,
    lower: impl Fn(&T, &str) -> Result<Matcher, Error>,
) -> Result<Vec<Expr>, Error> {
    values
        .iter()
        .enumerate()
        .map(|(at, value)| lower(value, &format!("{field}.{name}[{at}]")).map(Expr::Is))
        .collect()
}

fn string(
    matcher: fn(StringMatch) -> Matcher,
) -> impl Fn(&StringMatch, &str) -> Result<Matcher, Error> {
    move |value, field| match value {
        // Would match where there is nothing to match, or anything at all.
        StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text)
            if text.is_empty() =>
        {
            Err(Error::empty(field, "a text that is not empty"))
        }
        value => Ok(matcher(value.clone())),
    }
}

fn service_account(value: &ServiceAccount, field: &str) -> Result<Matcher, Error> {
    if value.namespace.is_empty() {
        return Err(Error::empty(format!("{field}.namespace"), "a namespace"));
    }
    if value.service_account.is_empty() {
        return Err(Error::empty(
            format!("{field}.serviceAccount"),
            "the name of a service account",
        ));
    }
    Ok(Matcher::ServiceAccount {
        namespace: value.namespace.as_str().into(),
        name: value.service_account.as_str().into(),
    })
}

fn network(matcher: fn(IpNet) -> Matcher) -> impl Fn(&Network, &str) -> Result<Matcher, Error> {
    move |value, field| {
        let net = match value {
            Network::Text(text) => parse_cidr(text).ok(),
            Network::Bytes { address, length } => from_bytes(address, *length),
        };
        net.map(matcher).ok_or_else(|| {
            let shown = match value {
                Network::Text(text) => text.clone(),
                Network::Bytes { address, length } => format!("{address:?}/{length}"),
            };
            let expected = "an IPv4 or IPv6 address with a prefix length that fits";
            Error::new(ErrorKind::Cidr, field, &shown, expected)
        })
    }
}

fn from_bytes(address: &[u8], length: u32) -> Option<IpNet> {
    let address = if let Ok(four) = <[u8; 4]>::try_from(address) {
        IpAddr::V4(Ipv4Addr::from(four))
    } else {
        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?))
    };
    let net = IpNet::new(address, u8::try_from(length).ok()?).ok()?;
    Some(canonical_net(net))
}

fn port(value: &u32, field: &str) -> Result<Matcher, Error> {
    u16::try_from(*value)
        .map(Matcher::DestinationPort)
        .map_err(|_| {
            let expected = "a port, 0 to 65535";
            Error::new(ErrorKind::Port, field, &value.to_string(), expected)
        })
}
