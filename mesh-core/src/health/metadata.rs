//! A WorkloadGroup's probe, as the settings of a proxy have it (`ProxyConfig.readinessProbe`).

use std::time::Duration;

use mesh_xds::ads::NodeValue;

use super::{Check, Probe, Target, Timing};

/// What is wrong: the path of the field, and what was expected there.
type Wrong = (String, String);

fn wrong<T>(field: &str, message: impl Into<String>) -> Result<T, Wrong> {
    Err((field.to_owned(), message.into()))
}

impl Probe {
    /// Reads `readinessProbe`. What it does not say has istio-agent's defaults, and so has 0.
    pub(crate) fn read(probe: &NodeValue) -> Result<Self, Wrong> {
        let methods = ["httpGet", "tcpSocket", "exec", "grpc"];
        let mut given = methods
            .into_iter()
            .filter_map(|method| Some((method, probe.get(method)?)));
        let (Some((method, of)), None) = (given.next(), given.next()) else {
            return wrong("", "expected one of httpGet, tcpSocket, exec and grpc");
        };
        let target = |host: bool| -> Result<Target, Wrong> {
            Ok(Target {
                host: match host {
                    true => text(of, method, "host")?.map(str::to_owned),
                    false => None,
                },
                port: port(of, method)?,
            })
        };
        let check = match method {
            "httpGet" => {
                match text(of, method, "scheme")?
                    .map(str::to_ascii_uppercase)
                    .as_deref()
                {
                    None | Some("HTTP") => {}
                    // Nobody could say by which roots.
                    Some(_) => return wrong("httpGet.scheme", "expected HTTP: no other is probed"),
                }
                Check::Http {
                    target: target(true)?,
                    path: text(of, method, "path")?.unwrap_or("/").to_owned(),
                    headers: headers(of)?,
                }
            }
            "tcpSocket" => Check::Tcp(target(true)?),
            "grpc" => Check::Grpc {
                target: target(false)?,
                service: text(of, method, "service")?.unwrap_or_default().to_owned(),
            },
            _ => Check::Exec(command(of)?),
        };
        let default = Timing::default();
        let seconds = |field: &str, default: Duration| -> Result<Duration, Wrong> {
            let count = count(probe, field)?;
            Ok(count.map_or(default, |count| Duration::from_secs(count.into())))
        };
        let timing = Timing {
            initial_delay: seconds("initialDelaySeconds", default.initial_delay)?,
            timeout: seconds("timeoutSeconds", default.timeout)?,
            period: seconds("periodSeconds", default.period)?,
            success_threshold: count(probe, "successThreshold")?
                .unwrap_or(default.success_threshold),
            failure_threshold: count(probe, "failureThreshold")?
                .unwrap_or(default.failure_threshold),
        };
        Ok(Self { check, timing })
    }

    /// As [`read`](Self::read) takes it: by this istiod knows that the host reports its health.
    pub(crate) fn to_metadata(&self) -> NodeValue {
        let number = |number: u32| NodeValue::Number(number.into());
        let seconds = |time: Duration| {
            let whole = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
            number(whole.max(u32::from(!time.is_zero())))
        };
        let of_target = |target: &Target| {
            let port = ("port".to_owned(), number(target.port.into()));
            let host = target
                .host
                .clone()
                .map(|host| ("host".to_owned(), host.into()));
            std::iter::once(port)
                .chain(host)
                .collect::<Vec<(String, NodeValue)>>()
        };
        let (method, of) = match &self.check {
            Check::Http {
                target,
                path,
                headers,
            } => {
                let mut of = of_target(target);
                of.push(("path".to_owned(), path.as_str().into()));
                let headers = headers.iter().map(|(name, value)| {
                    NodeValue::map([("name", name.as_str()), ("value", value.as_str())])
                });
                of.push(("httpHeaders".to_owned(), NodeValue::List(headers.collect())));
                ("httpGet", of)
            }
            Check::Tcp(target) => ("tcpSocket", of_target(target)),
            Check::Grpc { target, service } => {
                let mut of = of_target(target);
                of.push(("service".to_owned(), service.as_str().into()));
                ("grpc", of)
            }
            Check::Exec(command) => {
                let words = command.iter().map(|word| word.as_str().into());
                let words = NodeValue::List(words.collect());
                ("exec", vec![("command".to_owned(), words)])
            }
        };
        let Timing {
            initial_delay,
            timeout,
            period,
            success_threshold,
            failure_threshold,
        } = self.timing;
        NodeValue::map([
            (method, NodeValue::map(of)),
            ("initialDelaySeconds", seconds(initial_delay)),
            ("timeoutSeconds", seconds(timeout)),
            ("periodSeconds", seconds(period)),
            ("successThreshold", number(success_threshold)),
            ("failureThreshold", number(failure_threshold)),
        ])
    }
}

fn text<'a>(of: &'a NodeValue, method: &str, field: &str) -> Result<Option<&'a str>, Wrong> {
    match of.get(field) {
        None => Ok(None),
        Some(NodeValue::Text(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => wrong(&format!("{method}.{field}"), "expected a string"),
    }
}

/// A whole number that is not 0; protobuf's JSON may have it as a text.
fn number(of: Option<&NodeValue>) -> Result<Option<u32>, ()> {
    let number = match of {
        None => return Ok(None),
        Some(NodeValue::Number(number)) => number.to_string(),
        Some(NodeValue::Text(text)) => text.clone(),
        Some(_) => return Err(()),
    };
    let number: u32 = number.parse().map_err(|_| ())?;
    Ok((number > 0).then_some(number))
}

fn count(of: &NodeValue, field: &str) -> Result<Option<u32>, Wrong> {
    number(of.get(field)).or_else(|()| wrong(field, "expected a whole number, 0 or more"))
}

fn port(of: &NodeValue, method: &str) -> Result<u16, Wrong> {
    let found = number(of.get("port")).ok().flatten();
    match found.and_then(|port| u16::try_from(port).ok()) {
        Some(port) => Ok(port),
        None => wrong(&format!("{method}.port"), "expected a number of 1 to 65535"),
    }
}

fn headers(of: &NodeValue) -> Result<Vec<(String, String)>, Wrong> {
    let headers = match of.get("httpHeaders") {
        None => return Ok(Vec::new()),
        Some(NodeValue::List(headers)) => headers,
        Some(_) => return wrong("httpGet.httpHeaders", "expected a list"),
    };
    let header = |(index, header): (usize, &NodeValue)| {
        let part = |name: &str| header.get(name).and_then(NodeValue::text);
        match part("name") {
            Some(name) => Ok((
                name.to_owned(),
                part("value").unwrap_or_default().to_owned(),
            )),
            None => wrong(
                &format!("httpGet.httpHeaders[{index}].name"),
                "expected a string",
            ),
        }
    };
    headers.iter().enumerate().map(header).collect()
}

fn command(of: &NodeValue) -> Result<Vec<String>, Wrong> {
    let expected = || wrong("exec.command", "expected a list of strings");
    let Some(NodeValue::List(words)) = of.get("command") else {
        return expected();
    };
    let words = words.iter().map(|word| word.text().map(str::to_owned));
    match words.collect::<Option<Vec<_>>>() {
        Some(words) if !words.is_empty() => Ok(words),
        _ => expected(),
    }
}
