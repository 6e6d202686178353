//! Parsers that wait for the next body.
//!
//! A parser that has seen many bodies of a database knows its tables and series by heart, and may be used by one body at a
//! time. So they are lent: as many as bodies are parsed at once, which is a few, however many connections there are.

use model::DatabaseId;
use parking_lot::Mutex;

use crate::line_protocol::Parser;

/// Parsers that are kept; more are made when more bodies come at once and forgotten afterwards.
const IDLE_PARSERS: usize = 16;

/// The parsers that nobody uses now, the last used last.
#[derive(Default)]
pub(crate) struct Parsers {
    idle: Mutex<Vec<(DatabaseId, Box<Parser>)>>,
}

impl Parsers {
    /// The last used parser of a database, or a new one.
    pub(crate) fn take(&self, database: DatabaseId) -> Box<Parser> {
        let mut idle = self.idle.lock();
        match idle.iter().rposition(|(of, _)| *of == database) {
            Some(at) => idle.remove(at).1,
            None => Box::default(),
        }
    }

    /// Keeps a parser for the next body of its database; the one that has waited longest gives way.
    pub(crate) fn give_back(&self, database: DatabaseId, parser: Box<Parser>) {
        let mut idle = self.idle.lock();
        let given_up = (idle.len() == IDLE_PARSERS).then(|| idle.remove(0));
        idle.push((database, parser));
        drop(idle);
        // Freeing a large memory is done without the lock.
        drop(given_up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_used_parser_of_a_database_comes_first() {
        let parsers = Parsers::default();
        let (one, two) = (parsers.take(DatabaseId(1)), parsers.take(DatabaseId(1)));
        let last: *const Parser = &*two;
        parsers.give_back(DatabaseId(1), one);
        parsers.give_back(DatabaseId(1), two);
        parsers.give_back(DatabaseId(2), Box::default());
        assert_eq!(&*parsers.take(DatabaseId(1)) as *const Parser, last);
        for n in 0..100 {
            parsers.give_back(DatabaseId(n), Box::default());
        }
        assert_eq!(parsers.idle.lock().len(), IDLE_PARSERS);
    }
}
