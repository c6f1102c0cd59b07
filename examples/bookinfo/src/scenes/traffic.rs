use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::stage::{Stage, plaintext_page, request};
use crate::BoxError;
use crate::page::SECRETS;
use crate::relay::Relay;

/// The four services' answers are on the page, and every hop but the browser's proved both identities.
pub(super) async fn page(stage: &Stage) -> Result<Vec<String>, BoxError> {
    let mut hops = stage.cluster.hops();
    // v2 and v3 of reviews ask ratings; some request reaches one of them.
    let mut with_stars = false;
    for _ in 0..40 {
        let page = plaintext_page(Stage::page_address())
            .await
            .ok_or("the page did not answer")?;
        if !page.contains("PublisherA") || !page.contains("Reviews served by") {
            return Err(format!("the page lacks details or reviews: {page}").into());
        }
        with_stars |= page.contains('★');
        if with_stars {
            break;
        }
    }
    if !with_stars {
        return Err("no page had stars: ratings was never reached".into());
    }
    let mut seen = BTreeSet::new();
    let mut reached = BTreeSet::new();
    while let Ok(hop) = hops.try_recv() {
        let browser = hop.to.ends_with("/bookinfo-productpage");
        if !browser && !hop.from.starts_with("spiffe://") {
            return Err(format!("a hop without identity: {} -> {}", hop.from, hop.to).into());
        }
        if hop.status != 200 {
            return Err(format!("{} answered {}", hop.to, hop.status).into());
        }
        reached.insert(hop.to.clone());
        seen.insert(format!("{} -> {}", hop.from, hop.to));
    }
    if reached.len() != 4 {
        return Err(format!("expected four services, reached {reached:?}").into());
    }
    Ok(seen.into_iter().collect())
}

/// Each version of reviews gets a third, within five points.
pub(super) async fn spread(stage: &Stage) -> Result<Vec<String>, BoxError> {
    const REQUESTS: u32 = 1000;
    let client = stage.productpage();
    let mut count: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..REQUESTS {
        let (status, body) = request(&client, "GET", "http://reviews:9080/reviews/0").await?;
        if !status.is_success() {
            return Err(format!("reviews answered {status}").into());
        }
        let answer: Value = serde_json::from_str(&body)?;
        *count
            .entry(answer["podname"].as_str().unwrap_or_default().to_owned())
            .or_default() += 1;
    }
    let mut notes = Vec::new();
    for version in ["reviews-v1", "reviews-v2", "reviews-v3"] {
        let percent =
            f64::from(count.get(version).copied().unwrap_or(0)) * 100.0 / f64::from(REQUESTS);
        if (percent - 100.0 / 3.0).abs() > 5.0 {
            return Err(format!("{version} got {percent:.1} %: {count:?}").into());
        }
        notes.push(format!("{version}: {percent:.1} %"));
    }
    Ok(vec![notes.join("   ")])
}

/// Nothing of the page was readable on the wire, and the wiretap can read.
pub(super) async fn wiretap(stage: &Stage) -> Result<Vec<String>, BoxError> {
    let tapped: usize = stage.relays.iter().map(Relay::bytes).sum();
    if tapped == 0 {
        return Err("the wiretaps saw nothing at all".into());
    }
    for secret in SECRETS {
        if stage.relays.iter().any(|relay| relay.saw(secret)) {
            return Err(format!("{secret:?} passed in the clear").into());
        }
    }
    // The same wiretap in front of the plaintext port must see it.
    let control = Relay::start(([127, 0, 2, 9], 15008).into(), Stage::page_address()).await?;
    plaintext_page(([127, 0, 2, 9], 15008).into())
        .await
        .ok_or("the page did not answer")?;
    if !SECRETS.iter().all(|secret| control.saw(secret)) {
        return Err("the control wiretap, on plaintext, did not see the page's text either".into());
    }
    Ok(vec![format!(
        "{} bytes recorded before the HBONE ports; control: {} bytes of plaintext, all texts seen",
        tapped,
        control.bytes()
    )])
}
