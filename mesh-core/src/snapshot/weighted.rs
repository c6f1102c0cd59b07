//! A persistent ordered set whose items have weights: `span(prefix) -> Range<u64>`, `at(offset) -> item`.
//!
//! A size-balanced binary tree (Hirai and Yamamoto, "Balancing weight-balanced trees", 2011) in which
//! each node also carries the sum of the weights below it. Copies share nodes; a change copies the
//! path to it, or nothing at all where no copy shares the path.

use std::cmp::Ordering;
use std::fmt;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

/// Neither side may be more than this many times as large as the other.
const DELTA: usize = 3;
/// Rotates once where the inner grandchild is less than this many times as large as the outer.
const GAMMA: usize = 2;

/// The order of a tree's items; it must be total, and stay the same while the tree lives.
pub(super) trait Order<T> {
    fn compare(&self, a: &T, b: &T) -> Ordering;
}

#[derive(Clone)]
pub(super) struct WeightedTree<T, O> {
    root: Link<T>,
    order: O,
}

type Link<T> = Option<Arc<Node<T>>>;

#[derive(Clone)]
struct Node<T> {
    item: T,
    weight: u32,
    size: u32,
    sum: u64,
    left: Link<T>,
    right: Link<T>,
}

impl<T: Clone, O: Order<T>> WeightedTree<T, O> {
    pub(super) const fn new(order: O) -> Self {
        Self { root: None, order }
    }

    pub(super) fn order(&self) -> &O {
        &self.order
    }

    pub(super) fn len(&self) -> usize {
        size(&self.root)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// The sum of all weights.
    pub(super) fn total(&self) -> u64 {
        sum(&self.root)
    }

    /// Puts an item in its place; gives back the one that was there.
    pub(super) fn insert(&mut self, item: T, weight: u32) -> Option<T> {
        insert(&mut self.root, item, weight, &self.order)
    }

    /// Takes the item out that compares equal.
    pub(super) fn remove(&mut self, item: &T) -> Option<T> {
        let order = &self.order;
        // Looked for first, so that nothing is copied for an item that is not there.
        self.find(|other| order.compare(other, item))?;
        remove(&mut self.root, &|other| order.compare(other, item))
    }

    /// The first item for which `probe` (the item's order relative to what is sought) is equal.
    pub(super) fn find(&self, probe: impl Fn(&T) -> Ordering) -> Option<&T> {
        self.first_from(|item| probe(item).is_lt())
            .filter(|item| probe(item).is_eq())
    }

    /// The first item that is not `before`, which must hold for a leading run of the items.
    pub(super) fn first_from(&self, before: impl Fn(&T) -> bool) -> Option<&T> {
        let mut found = None;
        let mut link = &self.root;
        while let Some(node) = link {
            if before(&node.item) {
                link = &node.right;
            } else {
                found = Some(&node.item);
                link = &node.left;
            }
        }
        found
    }

    /// The stretch of the line of weights, laid end to end in order, that belongs to the items for
    /// which `probe` is equal.
    pub(super) fn span(&self, probe: impl Fn(&T) -> Ordering) -> Range<u64> {
        let start = self.weight_before(|item| probe(item).is_lt());
        let end = self.weight_before(|item| probe(item).is_le());
        start..end
    }

    /// The item whose weight covers this place on the line of weights. Never one of weight 0.
    pub(super) fn at(&self, mut offset: u64) -> Option<&T> {
        let mut link = &self.root;
        while let Some(node) = link {
            let left = sum(&node.left);
            if offset < left {
                link = &node.left;
                continue;
            }
            offset -= left;
            if offset < u64::from(node.weight) {
                return Some(&node.item);
            }
            offset -= u64::from(node.weight);
            link = &node.right;
        }
        None
    }

    pub(super) fn iter(&self) -> Iter<'_, T> {
        let mut iter = Iter { stack: Vec::new() };
        iter.descend(&self.root);
        iter
    }

    /// The items from the first that is not `before`, which must hold for a leading run of the items.
    pub(super) fn iter_from(&self, before: impl Fn(&T) -> bool) -> Iter<'_, T> {
        let mut iter = Iter { stack: Vec::new() };
        let mut link = &self.root;
        while let Some(node) = link {
            if before(&node.item) {
                link = &node.right;
            } else {
                iter.stack.push(node);
                link = &node.left;
            }
        }
        iter
    }

    fn weight_before(&self, before: impl Fn(&T) -> bool) -> u64 {
        let mut weight = 0;
        let mut link = &self.root;
        while let Some(node) = link {
            if before(&node.item) {
                weight += sum(&node.left) + u64::from(node.weight);
                link = &node.right;
            } else {
                link = &node.left;
            }
        }
        weight
    }
}

impl<T: fmt::Debug + Clone, O: Order<T>> fmt::Debug for WeightedTree<T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Items in order.
pub(super) struct Iter<'a, T> {
    /// The nodes to visit whose left sides are done, innermost last.
    stack: Vec<&'a Node<T>>,
}

impl<'a, T> Iter<'a, T> {
    fn descend(&mut self, mut link: &'a Link<T>) {
        while let Some(node) = link {
            self.stack.push(node);
            link = &node.left;
        }
    }
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        let node = self.stack.pop()?;
        self.descend(&node.right);
        Some(&node.item)
    }
}

impl<T> Node<T> {
    fn leaf(item: T, weight: u32) -> Self {
        Self {
            item,
            weight,
            size: 1,
            sum: u64::from(weight),
            left: None,
            right: None,
        }
    }

    fn update(&mut self) {
        self.size = (size(&self.left) + size(&self.right) + 1) as u32;
        self.sum = sum(&self.left) + sum(&self.right) + u64::from(self.weight);
    }
}

fn size<T>(link: &Link<T>) -> usize {
    link.as_ref().map_or(0, |node| node.size as usize)
}

fn sum<T>(link: &Link<T>) -> u64 {
    link.as_ref().map_or(0, |node| node.sum)
}

fn insert<T: Clone, O: Order<T>>(link: &mut Link<T>, item: T, weight: u32, order: &O) -> Option<T> {
    let Some(shared) = link else {
        *link = Some(Arc::new(Node::leaf(item, weight)));
        return None;
    };
    let node = Arc::make_mut(shared);
    let replaced = match order.compare(&item, &node.item) {
        Ordering::Less => insert(&mut node.left, item, weight, order),
        Ordering::Greater => insert(&mut node.right, item, weight, order),
        Ordering::Equal => {
            node.weight = weight;
            Some(mem::replace(&mut node.item, item))
        }
    };
    rebalance(shared);
    replaced
}

fn remove<T: Clone>(link: &mut Link<T>, probe: &impl Fn(&T) -> Ordering) -> Option<T> {
    let shared = link.as_mut()?;
    let node = Arc::make_mut(shared);
    let removed = match probe(&node.item) {
        Ordering::Greater => remove(&mut node.left, probe)?,
        Ordering::Less => remove(&mut node.right, probe)?,
        Ordering::Equal => {
            let Some((next, weight)) = pop_first(&mut node.right) else {
                let left = node.left.take();
                let item = node.item.clone();
                *link = left;
                return Some(item);
            };
            node.weight = weight;
            mem::replace(&mut node.item, next)
        }
    };
    rebalance(shared);
    Some(removed)
}

fn pop_first<T: Clone>(link: &mut Link<T>) -> Option<(T, u32)> {
    let shared = link.as_mut()?;
    let node = Arc::make_mut(shared);
    if node.left.is_none() {
        let first = (node.item.clone(), node.weight);
        *link = node.right.take();
        return Some(first);
    }
    let first = pop_first(&mut node.left);
    rebalance(shared);
    first
}

/// Restores the balance and the sums of a node whose sides differ by one change.
fn rebalance<T: Clone>(shared: &mut Arc<Node<T>>) {
    let node = Arc::make_mut(shared);
    let (left, right) = (size(&node.left) + 1, size(&node.right) + 1);
    if right > DELTA * left {
        if let Some(child) = node.right.as_mut()
            && size(&child.left) + 1 >= GAMMA * (size(&child.right) + 1)
        {
            rotate_right(child);
        }
        rotate_left(shared);
    } else if left > DELTA * right {
        if let Some(child) = node.left.as_mut()
            && size(&child.right) + 1 >= GAMMA * (size(&child.left) + 1)
        {
            rotate_left(child);
        }
        rotate_right(shared);
    } else {
        node.update();
    }
}

fn rotate_left<T: Clone>(shared: &mut Arc<Node<T>>) {
    let node = Arc::make_mut(shared);
    let Some(mut right) = node.right.take() else {
        return;
    };
    let upper = Arc::make_mut(&mut right);
    node.right = upper.left.take();
    node.update();
    mem::swap(shared, &mut right);
    let upper = Arc::make_mut(shared);
    upper.left = Some(right);
    upper.update();
}

fn rotate_right<T: Clone>(shared: &mut Arc<Node<T>>) {
    let node = Arc::make_mut(shared);
    let Some(mut left) = node.left.take() else {
        return;
    };
    let upper = Arc::make_mut(&mut left);
    node.left = upper.right.take();
    node.update();
    mem::swap(shared, &mut left);
    let upper = Arc::make_mut(shared);
    upper.right = Some(left);
    upper.update();
}

#[cfg(test)]
#[path = "weighted/tests.rs"]
mod tests;
