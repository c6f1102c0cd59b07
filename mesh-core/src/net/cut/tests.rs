use super::*;

#[test]
fn the_particulars_are_those_of_the_reason_that_won() {
    let cut = Cut::default();
    cut.check().unwrap();
    cut.cut_because(CutReason::Policy, "default/reviews, rule 0".to_owned());
    cut.cut_because(CutReason::Policy, "default/later".to_owned());
    cut.cut(CutReason::Drain);
    assert_eq!(cut.reason(), Some(CutReason::Policy));
    assert_eq!(cut.why(), Some("default/reviews, rule 0"));
    let error = cut.check().unwrap_err();
    assert_eq!(error.to_string(), CutReason::Policy.as_str());

    // Of a reason that has none, a later one's are not taken.
    let cut = Cut::default();
    cut.cut(CutReason::Revoked);
    cut.cut_because(CutReason::Policy, "default/reviews".to_owned());
    assert_eq!((cut.reason(), cut.why()), (Some(CutReason::Revoked), None));
}
