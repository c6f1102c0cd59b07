use std::cmp::Ordering;
use std::sync::Arc;

use proptest::prelude::*;

use super::{Child, MAX, Node, Order, WeightedTree};

#[derive(Clone, Copy, Default)]
struct Natural;

#[derive(Clone, Copy)]
struct ByValue;

impl Order<Arc<u16>> for ByValue {
    fn compare(&self, a: &Arc<u16>, b: &Arc<u16>) -> Ordering {
        a.cmp(b)
    }
}

impl Order<u16> for Natural {
    fn compare(&self, a: &u16, b: &u16) -> Ordering {
        a.cmp(b)
    }
}

type Tree = WeightedTree<u16, Natural>;

#[derive(Debug, Clone)]
enum Step {
    Insert(u16, u32),
    Remove(u16),
    /// Goes on with a copy, and keeps the tree to see that it stays as it is.
    Fork,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..600_u16, 0..5_u32).prop_map(|(item, weight)| Step::Insert(item, weight)),
        4 => (0..600_u16).prop_map(Step::Remove),
        1 => Just(Step::Fork),
    ];
    prop::collection::vec(step, 0..1_200)
}

/// Checks what parents know of their children, and that all leaves are at one depth; gives the height.
fn check(child: &Child<u16>) -> usize {
    assert!((1..=MAX).contains(&child.node.len()));
    assert_eq!(child.first, *child.node.first());
    assert_eq!((child.size, child.sum), child.node.measure());
    match &*child.node {
        Node::Leaf(leaf) => {
            assert!(leaf.weights.is_empty() || leaf.weights.len() == leaf.items.len());
            1
        }
        Node::Inner(children) => {
            let heights: Vec<_> = children.iter().map(check).collect();
            assert!(heights.iter().all(|height| *height == heights[0]));
            heights[0] + 1
        }
    }
}

fn height(tree: &Tree) -> usize {
    tree.root.as_ref().map_or(0, check)
}

fn same(tree: &Tree, sorted: &[(u16, u32)]) {
    height(tree);
    assert_eq!(tree.len(), sorted.len());
    assert_eq!(tree.is_empty(), sorted.is_empty());
    assert!(tree.iter().eq(sorted.iter().map(|(item, _)| item)));
    let total: u64 = sorted.iter().map(|(_, weight)| u64::from(*weight)).sum();
    assert_eq!(tree.total(), total);
    let line = sorted
        .iter()
        .flat_map(|(item, weight)| std::iter::repeat_n(item, *weight as usize));
    for (offset, item) in line.enumerate() {
        assert_eq!(tree.at(offset as u64), Some(item));
    }
    assert_eq!(tree.at(total), None);
}

proptest! {
    #[test]
    fn behaves_like_a_sorted_vector(
        first in prop::collection::btree_set(0..600_u16, 0..200),
        steps in steps(),
    ) {
        let mut tree = Tree::of_sorted(Natural, first.iter().copied());
        let mut sorted: Vec<(u16, u32)> = first.into_iter().map(|item| (item, 0)).collect();
        same(&tree, &sorted);
        let mut forks = Vec::new();
        for step in steps {
            match step {
                Step::Insert(item, weight) => {
                    let at = sorted.binary_search_by_key(&item, |(item, _)| *item);
                    let replaced = tree.insert(item, weight);
                    prop_assert_eq!(replaced.is_some(), at.is_ok());
                    match at {
                        Ok(at) => sorted[at].1 = weight,
                        Err(at) => sorted.insert(at, (item, weight)),
                    }
                }
                Step::Remove(item) => {
                    let at = sorted.binary_search_by_key(&item, |(item, _)| *item);
                    prop_assert_eq!(tree.remove(&item), at.ok().map(|_| item));
                    if let Ok(at) = at {
                        sorted.remove(at);
                    }
                }
                Step::Fork => forks.push((tree.clone(), sorted.clone())),
            }
        }
        same(&tree, &sorted);
        for (tree, sorted) in &forks {
            same(tree, sorted);
        }
    }

    #[test]
    fn spans_and_searches_agree_with_a_scan(
        items in prop::collection::btree_map(0..400_u16, 0..5_u32, 0..300),
        low in 0..410_u16,
        width in 0..40_u16,
    ) {
        let mut tree = Tree::new(Natural);
        for (item, weight) in &items {
            tree.insert(*item, *weight);
        }
        let high = low + width;
        let probe = |item: &u16| match item {
            item if *item < low => Ordering::Less,
            item if *item >= high => Ordering::Greater,
            _ => Ordering::Equal,
        };
        let weight = |to: u16| items.range(..to).map(|(_, weight)| u64::from(*weight)).sum::<u64>();
        prop_assert_eq!(tree.span(probe), weight(low)..weight(high));
        prop_assert_eq!(tree.first_from(|item| *item < low), items.range(low..).next().map(|(item, _)| item));
        let found = items.get_key_value(&low).map(|(item, _)| item);
        prop_assert_eq!(tree.find(|item| item.cmp(&low)), found);
        prop_assert_eq!(tree.find_at_the_end(|item| item.cmp(&low)), found);
    }
}

#[test]
fn is_let_go_of_leaf_by_leaf() {
    let items = (0..3_000_u16).map(Arc::new);
    let mut tree = WeightedTree::of_sorted(ByValue, items);
    let copy = tree.clone();
    // What a copy has is not looked through.
    assert!(tree.shed());
    assert!(!tree.shed());

    let mut tree = copy;
    let held: Vec<_> = tree.iter().cloned().collect();
    let live = || held.iter().filter(|item| Arc::strong_count(item) > 1);
    let mut left = live().count();
    while tree.shed() {
        let now = live().count();
        assert!(left - now <= MAX, "{left} to {now}");
        left = now;
    }
    assert_eq!((left, tree.len()), (0, 0));
}

#[test]
fn stays_shallow_when_filled_in_order() {
    let mut tree = Tree::new(Natural);
    for item in 0..10_000 {
        tree.insert(item, 1);
    }
    assert!(height(&tree) <= 3);
    for item in 0..9_990 {
        assert_eq!(tree.remove(&item), Some(item));
    }
    assert_eq!(height(&tree), 1);
}

#[test]
fn what_comes_in_order_fills_its_leaves() {
    let mut tree = Tree::new(Natural);
    for item in 0..1_000 {
        tree.insert(item, 0);
    }
    let Some(Node::Inner(children)) = tree.root.as_ref().map(|root| &*root.node) else {
        panic!("a thousand items have more than one leaf");
    };
    assert_eq!(children.len(), 1_000_usize.div_ceil(MAX));
}

#[test]
fn sums_do_not_overflow() {
    let mut tree = Tree::new(Natural);
    for item in 0..100 {
        tree.insert(item, u32::MAX);
    }
    assert_eq!(tree.total(), 100 * u64::from(u32::MAX));
    assert_eq!(tree.at(tree.total() - 1), Some(&99));
}
