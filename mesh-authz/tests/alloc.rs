//! Evaluation does not allocate. Its own binary: the counting allocator is the whole process's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_authz::matcher::{PathMatch, PathTemplate, StringMatch, parse_cidr};
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use mesh_authz::{Attribute, Attributes, Identity, PolicySet, RequestAttributes};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// The one way to see allocations; the library itself forbids unsafe code.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// Policies that between them have every matcher, in lists long and short.
fn policies() -> PolicySet {
    let text = |text: &str| Arc::<str>::from(text);
    let exact = |value: &str| StringMatch::Exact(text(value));
    let net = |value: &str| parse_cidr(value).unwrap();
    let matchers = || {
        [
            Matcher::Principal(exact("td/ns/a/sa/x")),
            Matcher::Principal(StringMatch::Prefix(text("td/ns/a"))),
            Matcher::Principal(StringMatch::Suffix(text("/sa/x"))),
            Matcher::Principal(StringMatch::regex("td/.*/y+").unwrap()),
            Matcher::Namespace(exact("a")),
            Matcher::ServiceAccount {
                namespace: text("a"),
                name: text("x"),
            },
            Matcher::TrustDomain(exact("td")),
            Matcher::SourceIp(net("10.0.0.0/8")),
            Matcher::DestinationIp(net("::/0")),
            Matcher::DestinationPort(80),
            Matcher::Sni(exact("a.com")),
            Matcher::RemoteIp(net("10.0.0.0/24")),
            Matcher::Host(exact("A.com:80")),
            Matcher::Method(exact("GET")),
            Matcher::Path(PathMatch::String(exact("/a/b"))),
            Matcher::Path(PathMatch::String(StringMatch::Prefix(text("/a")))),
            Matcher::Path(PathMatch::Template(
                PathTemplate::parse("/{*}/{**}").unwrap(),
            )),
            Matcher::Header {
                name: HeaderName::from_static("x-a"),
                value: exact("v"),
            },
            Matcher::request_principal("i/s"),
            Matcher::Audience(StringMatch::Present),
            Matcher::Presenter(StringMatch::Present),
            Matcher::Claim {
                path: vec![text("a")],
                value: StringMatch::Present,
            },
            Matcher::EnvoyMetadata {
                filter: text("f"),
                key: text("k"),
                value: StringMatch::Present,
            },
        ]
    };
    let not = |matcher: Matcher| Expr::Not(Box::new(Expr::Is(matcher)));
    let long =
        |of: &dyn Fn(u16) -> Matcher| Expr::Any((100..150).map(|n| Expr::Is(of(n))).collect());
    let lists = [
        long(&Matcher::DestinationPort),
        long(&|n| Matcher::Principal(exact(&format!("td/ns/a/sa/{n}")))),
        long(&|n| Matcher::SourceIp(net(&format!("10.0.{n}.0/24")))),
        long(&|n| Matcher::Path(PathMatch::String(exact(&format!("/{n}"))))),
    ];
    let mut all = Vec::new();
    for (at, action) in [
        Action::Deny,
        Action::Allow,
        Action::Audit,
        Action::Custom {
            provider: text("p"),
        },
    ]
    .into_iter()
    .enumerate()
    {
        // Nothing may match a refusal, or the rest would not be reached.
        let mut rules: Vec<Rule> = matchers()
            .into_iter()
            .map(|matcher| Rule::new(Expr::All(vec![Expr::Is(matcher.clone()), not(matcher)])))
            .collect();
        rules.extend(lists.iter().map(|list| Rule::new(list.clone())));
        for dry_run in [false, true] {
            let name = PolicyName::new("ns", format!("{at}"));
            let policy = Policy::new(name, action.clone(), rules.clone());
            all.push(Arc::new(policy.with_dry_run(dry_run)));
        }
    }
    PolicySet::new(all)
}

#[test]
fn evaluation_does_not_allocate() {
    // The counter counts.
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);

    let set = policies();
    let identity = Identity::new("td", "a", "x").unwrap();
    let method = Method::GET;
    let headers = HeaderMap::from_iter([
        (
            HeaderName::from_static("x-a"),
            HeaderValue::from_static("v"),
        ),
        (
            HeaderName::from_static("x-a"),
            HeaderValue::from_static("w"),
        ),
    ]);
    let request = RequestAttributes::new(&method, Some("a.COM:80"), "/a/b?c", &headers);
    let connection = Attributes::new(
        "[::ffff:10.0.0.1]:1000".parse().unwrap(),
        "10.0.0.2:80".parse().unwrap(),
    );
    let known = connection
        .clone()
        .with_identity(Attribute::Present(&identity))
        .with_sni(Attribute::Present("a.com"))
        .with_request(request);
    let unknown = connection
        .with_identity(Attribute::Unknown)
        .with_sni(Attribute::Unknown);

    let ask = |attributes: &Attributes<'_>| {
        let answers = [
            set.evaluate(attributes),
            set.evaluate_l4(attributes),
            set.could_allow(attributes),
            set.evaluate_dry_run(attributes).decision(),
            set.evaluate_l4_dry_run(attributes).decision(),
        ];
        std::hint::black_box(answers);
    };
    for attributes in [&known, &unknown] {
        // The first of each kind compiles.
        ask(attributes);
        assert_eq!(allocations(|| ask(attributes)), 0);
    }
    assert!(!set.evaluate(&known).is_allowed());
}
