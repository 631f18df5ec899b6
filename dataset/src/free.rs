//! Places that are taken one by one (union-find: Tarjan, "Efficiency of a Good But Not Linear Set Union Algorithm", 1975).

use crate::matching::narrow;

/// Which places were not taken yet.
pub(crate) struct Free {
    next: Vec<u32>,
}

impl Free {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            next: (0..=narrow(count)).collect(),
        }
    }

    pub(crate) fn is_free(&self, place: usize) -> bool {
        self.next[place] as usize == place
    }

    pub(crate) fn take(&mut self, place: usize) {
        self.next[place] = narrow(place + 1);
    }

    /// The first free place at or after `place`; the number of places if there is none.
    pub(crate) fn from(&mut self, place: usize) -> usize {
        let mut root = place;
        while self.next[root] as usize != root {
            root = self.next[root] as usize;
        }
        let mut at = place;
        while at != root {
            let after = self.next[at] as usize;
            self.next[at] = narrow(root);
            at = after;
        }
        root
    }
}
