//! Arguments that are described once their command was typed: the description of all of them takes longer than the rest of the
//! parsing.

use std::ops::Deref;

use clap::builder::{Resettable, StyledStr};
use clap::{ArgMatches, Args, Command, Error, FromArgMatches};

/// The arguments `T` of one command of many.
#[derive(Debug, Clone)]
pub struct Later<T>(Box<T>);

impl<T> Deref for Later<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Args> Args for Later<T> {
    fn augment_args(command: Command) -> Command {
        command.defer(|command| {
            // Of the command, not of its arguments.
            let (about, long_about) = (command.get_about(), command.get_long_about());
            let as_it_is = |text: Option<&StyledStr>| {
                text.cloned().map_or(Resettable::Reset, Resettable::Value)
            };
            let (about, long_about) = (as_it_is(about), as_it_is(long_about));
            T::augment_args(command).about(about).long_about(long_about)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: FromArgMatches> FromArgMatches for Later<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(|arguments| Self(Box::new(arguments)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }
}
