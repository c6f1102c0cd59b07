//! A persistent ordered set whose items have weights: `span(prefix) -> Range<u64>`, `at(offset) -> item`.
//!
//! A B+ tree in which each child's entry also carries how many items are below it and the sum of their
//! weights. Copies share nodes; a change copies the path to it, or nothing at all where no copy shares the
//! path. Items stand side by side in their leaf: a node for each would take several times their memory.

use std::cmp::Ordering;
use std::fmt;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

/// Items of a leaf, and children of an inner node, at most.
const MAX: usize = 32;
/// A node with fewer joins its neighbour, where both fit in one.
const MIN: usize = 8;

/// The order of a tree's items; it must be total, and stay the same while the tree lives.
pub(super) trait Order<T> {
    fn compare(&self, a: &T, b: &T) -> Ordering;
}

#[derive(Clone)]
pub(super) struct WeightedTree<T, O> {
    root: Option<Child<T>>,
    order: O,
}

/// A node with what its parent knows of it.
struct Child<T> {
    node: Arc<Node<T>>,
    /// The first item below.
    first: T,
    size: u32,
    sum: u64,
}

/// Neither is ever empty, and all leaves are at one depth.
enum Node<T> {
    Leaf(Leaf<T>),
    Inner(Vec<Child<T>>),
}

struct Leaf<T> {
    items: Vec<T>,
    /// One for each item, or none at all where all are 0.
    weights: Vec<u32>,
}

impl<T: Clone, O: Order<T>> WeightedTree<T, O> {
    pub(super) const fn new(order: O) -> Self {
        Self { root: None, order }
    }

    pub(super) fn order(&self) -> &O {
        &self.order
    }

    pub(super) fn len(&self) -> usize {
        self.root.as_ref().map_or(0, |root| root.size as usize)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// The sum of all weights.
    pub(super) fn total(&self) -> u64 {
        self.root.as_ref().map_or(0, |root| root.sum)
    }

    /// Puts an item in its place; gives back the one that was there.
    pub(super) fn insert(&mut self, item: T, weight: u32) -> Option<T> {
        let Some(root) = &mut self.root else {
            self.root = Some(Child::of(Node::Leaf(Leaf::one(item, weight))));
            return None;
        };
        let (replaced, split) = root.insert(item, weight, &self.order);
        if let Some(right) = split
            && let Some(left) = self.root.take()
        {
            self.root = Some(Child::of(Node::Inner(vec![left, right])));
        }
        replaced
    }

    /// The tree of items that are in order, each once, and have no weight: its leaves are full.
    pub(super) fn of_sorted(order: O, items: impl IntoIterator<Item = T>) -> Self {
        let mut items = items.into_iter().peekable();
        let mut level = Vec::new();
        while items.peek().is_some() {
            let mut leaf = Vec::with_capacity(MAX);
            leaf.extend(items.by_ref().take(MAX));
            if items.peek().is_none() {
                leaf.shrink_to_fit();
            }
            level.push(Child::of(Node::Leaf(Leaf {
                items: leaf,
                weights: Vec::new(),
            })));
        }
        while level.len() > 1 {
            let mut nodes = level.into_iter().peekable();
            level = Vec::new();
            while nodes.peek().is_some() {
                let children: Vec<_> = nodes.by_ref().take(MAX).collect();
                level.push(Child::of(Node::Inner(children)));
            }
        }
        Self {
            root: level.pop(),
            order,
        }
    }

    /// As [`find`](Self::find), for an item that is sought where the last ones were put: at the end.
    pub(super) fn find_at_the_end(&self, probe: impl Fn(&T) -> Ordering) -> Option<&T> {
        let mut node = &*self.root.as_ref()?.node;
        loop {
            match node {
                Node::Leaf(leaf) => {
                    let at = from_the_end(&leaf.items, &probe).ok()?;
                    return leaf.items.get(at);
                }
                Node::Inner(children) => {
                    let found = from_the_end(children, |child| probe(&child.first));
                    let at = found.unwrap_or_else(|at| at.saturating_sub(1));
                    node = &children[at].node;
                }
            }
        }
    }

    /// Takes the item out that compares equal.
    pub(super) fn remove(&mut self, item: &T) -> Option<T> {
        let order = &self.order;
        // Looked for first, so that nothing is copied for an item that is not there.
        self.find(|other| order.compare(other, item))?;
        let root = self.root.as_mut()?;
        let removed = root.remove(&|other| order.compare(other, item));
        if root.size == 0 {
            self.root = None;
        } else {
            while let Some(only) = self.root.as_ref().and_then(Child::only_child) {
                self.root = Some(only);
            }
        }
        removed
    }

    /// Lets go of some of the items: of a leaf, or of whatever copies still share. `false` if there are none.
    pub(super) fn shed(&mut self) -> bool {
        let Some(root) = &mut self.root else {
            return false;
        };
        if !root.shed() {
            self.root = None;
        }
        true
    }

    /// The first item for which `probe` (the item's order relative to what is sought) is equal.
    pub(super) fn find(&self, probe: impl Fn(&T) -> Ordering) -> Option<&T> {
        self.first_from(|item| probe(item).is_lt())
            .filter(|item| probe(item).is_eq())
    }

    /// The first item that is not `before`, which must hold for a leading run of the items.
    pub(super) fn first_from(&self, before: impl Fn(&T) -> bool) -> Option<&T> {
        let mut node = &*self.root.as_ref()?.node;
        let mut found = None;
        loop {
            match node {
                Node::Leaf(leaf) => {
                    let at = leaf.items.partition_point(&before);
                    return leaf.items.get(at).or(found);
                }
                Node::Inner(children) => {
                    let after = children.partition_point(|child| before(&child.first));
                    found = children.get(after).map(|child| &child.first).or(found);
                    let Some(at) = after.checked_sub(1) else {
                        return found;
                    };
                    node = &children[at].node;
                }
            }
        }
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
        let mut child = self.root.as_ref().filter(|root| offset < root.sum)?;
        loop {
            match &*child.node {
                Node::Leaf(leaf) => {
                    let width = |weight: &u32| u64::from(*weight);
                    let (at, _) = place(&leaf.weights, width, child.sum, offset)?;
                    return leaf.items.get(at);
                }
                Node::Inner(children) => {
                    let (at, within) = place(children, |child| child.sum, child.sum, offset)?;
                    child = children.get(at)?;
                    offset = within;
                }
            }
        }
    }

    pub(super) fn iter(&self) -> Iter<'_, T> {
        self.iter_from(|_| false)
    }

    /// The items from the first that is not `before`, which must hold for a leading run of the items.
    pub(super) fn iter_from(&self, before: impl Fn(&T) -> bool) -> Iter<'_, T> {
        let mut iter = Iter::of(&[]);
        let mut next = self.root.as_ref();
        while let Some(child) = next {
            next = match &*child.node {
                Node::Leaf(leaf) => {
                    let at = leaf.items.partition_point(&before);
                    iter.leaf = leaf.items[at..].iter();
                    None
                }
                Node::Inner(children) => {
                    let after = children.partition_point(|child| before(&child.first));
                    let mut rest = children[after.saturating_sub(1)..].iter();
                    let next = rest.next();
                    iter.inner.push(rest);
                    next
                }
            };
        }
        iter
    }

    fn weight_before(&self, before: impl Fn(&T) -> bool) -> u64 {
        let mut weight = 0;
        let Some(root) = &self.root else {
            return 0;
        };
        let mut node = &*root.node;
        loop {
            match node {
                Node::Leaf(leaf) => {
                    let at = leaf.items.partition_point(&before);
                    let weights = leaf.weights.iter().take(at);
                    return weight + weights.map(|weight| u64::from(*weight)).sum::<u64>();
                }
                Node::Inner(children) => {
                    let after = children.partition_point(|child| before(&child.first));
                    let Some(at) = after.checked_sub(1) else {
                        return weight;
                    };
                    weight += children[..at].iter().map(|child| child.sum).sum::<u64>();
                    node = &children[at].node;
                }
            }
        }
    }
}

/// Which of these stretches, so wide together, covers the offset, and where in it. Sought from the end that is nearer.
fn place<T>(
    stretches: &[T],
    width: impl Fn(&T) -> u64,
    sum: u64,
    mut offset: u64,
) -> Option<(usize, u64)> {
    if offset < sum / 2 {
        for (at, stretch) in stretches.iter().enumerate() {
            let width = width(stretch);
            if offset < width {
                return Some((at, offset));
            }
            offset -= width;
        }
        return None;
    }
    let mut start = sum;
    for (at, stretch) in stretches.iter().enumerate().rev() {
        start = start.checked_sub(width(stretch))?;
        if offset >= start {
            return Some((at, offset - start));
        }
    }
    None
}

impl<T: fmt::Debug + Clone, O: Order<T>> fmt::Debug for WeightedTree<T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Items in order.
pub(super) struct Iter<'a, T> {
    /// What is left of the inner nodes on the way to the leaf, innermost last.
    inner: Vec<std::slice::Iter<'a, Child<T>>>,
    leaf: std::slice::Iter<'a, T>,
}

impl<'a, T> Iter<'a, T> {
    /// Of these alone.
    pub(super) fn of(items: &'a [T]) -> Self {
        Self {
            inner: Vec::new(),
            leaf: items.iter(),
        }
    }
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some(item) = self.leaf.next() {
                return Some(item);
            }
            let Some(child) = self.inner.last_mut()?.next() else {
                self.inner.pop();
                continue;
            };
            match &*child.node {
                Node::Leaf(leaf) => self.leaf = leaf.items.iter(),
                Node::Inner(children) => self.inner.push(children.iter()),
            }
        }
    }
}

impl<T: Clone> Clone for Child<T> {
    fn clone(&self) -> Self {
        Self {
            node: Arc::clone(&self.node),
            first: self.first.clone(),
            size: self.size,
            sum: self.sum,
        }
    }
}

impl<T: Clone> Clone for Node<T> {
    /// Nodes are copied to be changed: with room for one more.
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(leaf) => Self::Leaf(Leaf {
                items: roomy(&leaf.items),
                weights: match leaf.weights.is_empty() {
                    true => Vec::new(),
                    false => roomy(&leaf.weights),
                },
            }),
            Self::Inner(children) => Self::Inner(roomy(children)),
        }
    }
}

fn roomy<T: Clone>(items: &[T]) -> Vec<T> {
    let mut copy = Vec::with_capacity((items.len() + 1).next_power_of_two().min(MAX + 1));
    copy.extend_from_slice(items);
    copy
}

impl<T: Clone> Child<T> {
    /// Of a node that is not empty.
    fn of(node: Node<T>) -> Self {
        let first = node.first().clone();
        let (size, sum) = node.measure();
        Self {
            node: Arc::new(node),
            first,
            size,
            sum,
        }
    }

    /// What an inner node with one child leads to.
    fn only_child(&self) -> Option<Self> {
        match &*self.node {
            Node::Inner(children) if children.len() == 1 => children.first().cloned(),
            _ => None,
        }
    }

    /// The item that was there, and the right part where the node is in two now.
    fn insert<O: Order<T>>(
        &mut self,
        item: T,
        weight: u32,
        order: &O,
    ) -> (Option<T>, Option<Self>) {
        let (mut replaced, mut split) = (None, None);
        let at = match Arc::make_mut(&mut self.node) {
            Node::Leaf(leaf) => {
                match from_the_end(&leaf.items, |other| order.compare(other, &item)) {
                    Ok(at) => {
                        leaf.set_weight(at, weight);
                        replaced = Some(mem::replace(&mut leaf.items[at], item));
                        at
                    }
                    Err(at) => {
                        split = leaf.insert_or_split(at, item, weight).map(Node::Leaf);
                        at
                    }
                }
            }
            Node::Inner(children) => {
                let found = from_the_end(children, |child| order.compare(&child.first, &item));
                let at = found.unwrap_or_else(|at| at.saturating_sub(1));
                let right;
                (replaced, right) = children[at].insert(item, weight, order);
                split = right
                    .and_then(|right| insert_or_split(children, at + 1, right))
                    .map(Node::Inner);
                at
            }
        };
        if replaced.is_none() && split.is_none() {
            // What most do: nothing has to be counted again.
            self.size += 1;
            self.sum += u64::from(weight);
            if at == 0 {
                self.first = self.node.first().clone();
            }
        } else {
            self.refresh(at == 0);
        }
        (replaced, split.map(Self::of))
    }

    /// Takes out what is there; the node may be empty then.
    fn remove(&mut self, probe: &impl Fn(&T) -> Ordering) -> Option<T> {
        let node = Arc::make_mut(&mut self.node);
        let (removed, at) = match node {
            Node::Leaf(leaf) => {
                let at = leaf.items.binary_search_by(probe).ok()?;
                (leaf.remove(at), at)
            }
            Node::Inner(children) => {
                let after = children.partition_point(|child| probe(&child.first).is_le());
                let at = after.checked_sub(1)?;
                let removed = children[at].remove(probe)?;
                tidy(children, at);
                (removed, at)
            }
        };
        if node.len() == 0 {
            self.size = 0;
            self.sum = 0;
        } else {
            // A neighbour may have joined from the left.
            self.refresh(at <= 1);
        }
        Some(removed)
    }

    /// Lets go of some of what is below. `false` if that is all of it, with which the node is to go, too.
    fn shed(&mut self) -> bool {
        let Some(Node::Inner(children)) = Arc::get_mut(&mut self.node) else {
            return false;
        };
        if !children.last_mut().is_some_and(Self::shed) {
            children.pop();
        }
        !children.is_empty()
    }

    /// Knows its node again after that changed.
    fn refresh(&mut self, first: bool) {
        if first {
            self.first = self.node.first().clone();
        }
        (self.size, self.sum) = self.node.measure();
    }
}

/// A search that looks at the end first: resources mostly come in order.
fn from_the_end<T>(items: &[T], compare: impl Fn(&T) -> Ordering) -> Result<usize, usize> {
    let last = items.len() - 1;
    match compare(&items[last]) {
        Ordering::Less => Err(last + 1),
        Ordering::Equal => Ok(last),
        Ordering::Greater => items[..last].binary_search_by(compare),
    }
}

/// Removes a child that is empty, and joins one that is small with a neighbour where both fit in one node.
fn tidy<T: Clone>(children: &mut Vec<Child<T>>, at: usize) {
    if children[at].size == 0 {
        children.remove(at);
        return;
    }
    if children[at].node.len() >= MIN || children.len() == 1 {
        return;
    }
    let left = at.saturating_sub(1);
    let fits = |left: usize| {
        let pair = children.get(left..=left + 1)?;
        let len = pair[0].node.len() + pair[1].node.len();
        (len <= MAX).then_some(left)
    };
    let Some(left) = fits(left).or_else(|| fits(at)) else {
        return;
    };
    let right = children.remove(left + 1);
    let child = &mut children[left];
    let right = Arc::unwrap_or_clone(right.node);
    match (Arc::make_mut(&mut child.node), right) {
        (Node::Leaf(left), Node::Leaf(right)) => left.append(right),
        (Node::Inner(left), Node::Inner(mut right)) => left.append(&mut right),
        _ => debug_assert!(false, "leaves are at one depth"),
    }
    child.refresh(true);
}

impl<T: Clone> Node<T> {
    fn first(&self) -> &T {
        match self {
            Self::Leaf(leaf) => &leaf.items[0],
            Self::Inner(children) => &children[0].first,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.items.len(),
            Self::Inner(children) => children.len(),
        }
    }

    /// How many items are below, and the sum of their weights.
    fn measure(&self) -> (u32, u64) {
        match self {
            Self::Leaf(leaf) => {
                let weights = leaf.weights.iter().map(|weight| u64::from(*weight));
                (leaf.items.len() as u32, weights.sum())
            }
            Self::Inner(children) => (
                children.iter().map(|child| child.size).sum(),
                children.iter().map(|child| child.sum).sum(),
            ),
        }
    }
}

/// How many items a full node keeps when one more comes to `at`. Where it comes to the end, as all do that are in
/// order, the node stays full.
fn kept(at: usize) -> usize {
    match at {
        MAX => MAX,
        _ => MAX / 2,
    }
}

/// Gives the right part of what is too many for one node.
fn insert_or_split<T>(items: &mut Vec<T>, at: usize, item: T) -> Option<Vec<T>> {
    if items.len() < MAX {
        items.insert(at, item);
        return None;
    }
    let kept = kept(at);
    let mut right = items.split_off(kept);
    match at.checked_sub(kept) {
        Some(at) => right.insert(at, item),
        None => items.insert(at, item),
    }
    Some(right)
}

/// Makes room for one more, by less than a vector would: most services have few endpoints.
fn grow<T>(items: &mut Vec<T>) {
    if items.len() == items.capacity() {
        let room = (items.len() / 2).max(3);
        items.reserve_exact(room.min(MAX.saturating_sub(items.len())).max(1));
    }
}

impl<T> Leaf<T> {
    fn one(item: T, weight: u32) -> Self {
        let mut leaf = Self {
            items: Vec::with_capacity(1),
            weights: Vec::new(),
        };
        leaf.insert(0, item, weight);
        leaf
    }

    /// Gives each item a weight of its own, if one is not 0.
    fn weigh(&mut self, weight: u32) {
        if weight != 0 && self.weights.is_empty() {
            self.weights.reserve_exact(self.items.capacity());
            self.weights.resize(self.items.len(), 0);
        }
    }

    fn set_weight(&mut self, at: usize, weight: u32) {
        self.weigh(weight);
        if let Some(own) = self.weights.get_mut(at) {
            *own = weight;
        }
    }

    fn insert(&mut self, at: usize, item: T, weight: u32) {
        let weighs = weight != 0 || !self.weights.is_empty();
        grow(&mut self.items);
        self.weigh(weight);
        if weighs {
            self.weights
                .reserve_exact(self.items.capacity() - self.weights.len());
            self.weights.insert(at, weight);
        }
        self.items.insert(at, item);
    }

    fn remove(&mut self, at: usize) -> T {
        if at < self.weights.len() {
            self.weights.remove(at);
        }
        self.items.remove(at)
    }

    /// Gives the right part of what is too much for one leaf.
    fn insert_or_split(&mut self, at: usize, item: T, weight: u32) -> Option<Self> {
        if self.items.len() < MAX {
            self.insert(at, item, weight);
            return None;
        }
        let kept = kept(at);
        let mut right = Self {
            items: self.items.split_off(kept),
            weights: match self.weights.is_empty() {
                true => Vec::new(),
                false => self.weights.split_off(kept),
            },
        };
        match at.checked_sub(kept) {
            Some(at) => right.insert(at, item, weight),
            None => self.insert(at, item, weight),
        }
        Some(right)
    }

    fn append(&mut self, mut right: Self) {
        let weighs = !self.weights.is_empty() || !right.weights.is_empty();
        if weighs {
            self.weights.resize(self.items.len(), 0);
            right.weights.resize(right.items.len(), 0);
            self.weights.append(&mut right.weights);
        }
        self.items.append(&mut right.items);
    }
}

#[cfg(test)]
#[path = "weighted/tests.rs"]
mod tests;
