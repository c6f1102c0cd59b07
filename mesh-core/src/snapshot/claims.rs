//! What claims one thing, such as a name or an address: mostly one, which stands by itself.

use std::cmp::Ordering;
use std::slice;

use super::weighted::{Iter, Order, WeightedTree};

/// Never none of them; the one to prefer first.
#[derive(Clone)]
pub(super) enum Claims<T, O> {
    One(T),
    /// In a box, so that one takes no more room for it.
    Many(Box<WeightedTree<T, O>>),
}

impl<T: Clone, O: Order<T> + Default + Clone> Claims<T, O> {
    /// Puts one in its place, or in that of an equal one.
    pub(super) fn insert(&mut self, item: T) {
        match self {
            Self::One(own) if O::default().compare(own, &item).is_eq() => *own = item,
            Self::One(own) => {
                let mut tree = WeightedTree::default();
                tree.insert(own.clone(), 0);
                tree.insert(item, 0);
                *self = Self::Many(Box::new(tree));
            }
            Self::Many(tree) => {
                tree.insert(item, 0);
            }
        }
    }

    /// Takes out the one that compares equal. `false` if it was the last, with which all is to go.
    pub(super) fn remove(&mut self, item: &T) -> bool {
        match self {
            Self::One(own) => O::default().compare(own, item).is_ne(),
            Self::Many(tree) => {
                tree.remove(item);
                if tree.len() == 1
                    && let Some(last) = tree.first_from(|_| false).cloned()
                {
                    *self = Self::One(last);
                }
                true
            }
        }
    }

    /// The first of all.
    pub(super) fn first(&self) -> Option<&T> {
        self.first_from(|_| false)
    }

    /// The first that is not `before`, which must hold for a leading run of them.
    fn first_from(&self, before: impl Fn(&T) -> bool) -> Option<&T> {
        match self {
            Self::One(own) => (!before(own)).then_some(own),
            Self::Many(tree) => tree.first_from(before),
        }
    }

    /// The first for which `probe` (its order relative to what is sought) is equal.
    pub(super) fn find(&self, probe: impl Fn(&T) -> Ordering) -> Option<&T> {
        self.first_from(|item| probe(item).is_lt())
            .filter(|item| probe(item).is_eq())
    }

    pub(super) fn iter(&self) -> Iter<'_, T> {
        match self {
            Self::One(own) => Iter::of(slice::from_ref(own)),
            Self::Many(tree) => tree.iter(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct ByTens;

    impl Order<u32> for ByTens {
        fn compare(&self, a: &u32, b: &u32) -> Ordering {
            (a / 10).cmp(&(b / 10))
        }
    }

    fn all(claims: &Claims<u32, ByTens>) -> Vec<u32> {
        claims.iter().copied().collect()
    }

    #[test]
    fn the_one_to_prefer_is_first_and_an_equal_one_replaces() {
        let mut claims = Claims::<_, ByTens>::One(20);
        claims.insert(21);
        assert_eq!(all(&claims), [21]);
        claims.insert(30);
        claims.insert(10);
        claims.insert(11);
        assert_eq!(all(&claims), [11, 21, 30]);
        assert_eq!(claims.first(), Some(&11));
        assert_eq!(claims.find(|own| (own / 10).cmp(&2)), Some(&21));
        assert_eq!(claims.find(|own| (own / 10).cmp(&5)), None);
    }

    #[test]
    fn the_last_stands_by_itself_and_says_when_it_goes() {
        let mut claims = Claims::<_, ByTens>::One(20);
        claims.insert(10);
        assert!(claims.remove(&50), "it is not there");
        assert!(claims.remove(&20));
        assert!(matches!(claims, Claims::One(10)));
        assert_eq!(claims.find(|own| (own / 10).cmp(&1)), Some(&10));
        assert_eq!(claims.find(|own| (own / 10).cmp(&2)), None);
        assert!(claims.remove(&20), "it is not there");
        assert!(!claims.remove(&10));
    }
}
