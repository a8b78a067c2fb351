//! Names for machines that were given none: an adjective and a noun.

use std::io;

use super::id::fill_random;
use super::name::MachineName;

/// Of a landscape, a mood or a thing's look.
const ADJECTIVES: [&str; 64] = [
    "able", "airy", "amber", "ample", "apt", "azure", "balmy", "bold", "brave", "breezy", "bright",
    "brisk", "calm", "candid", "clear", "clever", "coastal", "cosy", "crisp", "daring", "deep",
    "dewy", "eager", "early", "earnest", "fair", "fleet", "fond", "frank", "fresh", "frosty",
    "gentle", "glad", "golden", "grand", "hardy", "hazel", "humble", "ivory", "jolly", "keen",
    "kind", "lively", "lucid", "lunar", "mellow", "merry", "mild", "misty", "nimble", "noble",
    "patient", "placid", "plucky", "quiet", "rapid", "rustic", "serene", "silver", "sunny", "tidy",
    "vivid", "warm", "witty",
];

/// Of a walk along a coast and up a hill.
const NOUNS: [&str; 64] = [
    "acorn", "alder", "anchor", "aspen", "badger", "basin", "beacon", "birch", "bramble", "brook",
    "cairn", "canyon", "cedar", "cliff", "clover", "comet", "cove", "crane", "creek", "delta",
    "dune", "falcon", "fern", "fjord", "garnet", "glacier", "grove", "harbour", "heath", "heron",
    "hollow", "island", "jetty", "juniper", "lagoon", "lantern", "larch", "lark", "lichen",
    "linden", "magpie", "maple", "marten", "meadow", "mesa", "orchard", "osprey", "otter",
    "pebble", "pine", "plover", "quarry", "quartz", "raven", "reed", "ridge", "river", "rowan",
    "sparrow", "spruce", "thicket", "tundra", "valley", "willow",
];

/// Makes a name up; the higher `attempt`, the less likely that somebody has it.
pub(super) fn made_up_name(attempt: u32) -> io::Result<MachineName> {
    let mut random = [0; 4];
    fill_random(&mut random)?;
    let [adjective, noun, more @ ..] = random;
    let adjective = ADJECTIVES[usize::from(adjective) % ADJECTIVES.len()];
    let noun = NOUNS[usize::from(noun) % NOUNS.len()];
    let name = match attempt {
        0..4 => format!("{adjective}_{noun}"),
        _ => format!("{adjective}_{noun}_{:04x}", u16::from_le_bytes(more)),
    };
    name.parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_listed_once() {
        let mut words: Vec<&str> = ADJECTIVES.iter().chain(&NOUNS).copied().collect();
        words.sort_unstable();
        let count = words.len();
        words.dedup();

        assert_eq!(words.len(), count);
    }

    #[test]
    fn a_made_up_name_is_two_words() {
        let name = made_up_name(0).unwrap();

        let (adjective, noun) = name.as_str().split_once('_').unwrap();
        assert!(ADJECTIVES.contains(&adjective));
        assert!(NOUNS.contains(&noun));
    }

    #[test]
    fn a_crowded_registry_gets_longer_names() {
        let name = made_up_name(4).unwrap();

        assert_eq!(name.as_str().split('_').count(), 3);
    }
}
