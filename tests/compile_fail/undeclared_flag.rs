// A type that exists but is not a flag.

use flipswitch::Flags;
use flipswitch_axum::FlagGate;

pub struct NewCheckout;

pub fn read(flags: &Flags) {
    //~ `NewCheckout` was not declared with `flags!`
    //~ not a declared flag
    //~ declare it: `flipswitch::flags! { pub NewCheckout: bool = "new-checkout", default false; }`
    flags.get(NewCheckout);
}

pub fn read_by_key(flags: &Flags) {
    //~ `&str` was not declared with `flags!`
    //~ a flag that is not declared is read by its key: `flags.bool("new-checkout", false)`
    flags.get("new-checkout");
}

//~ `NewCheckout` was not declared with `flags!`
pub async fn axum_handler(_: flipswitch_axum::Flag<NewCheckout>) {}

//~ `NewCheckout` was not declared with `flags!`
pub async fn actix_handler(_: flipswitch_actix::Flag<NewCheckout>) {}

pub fn gate() -> FlagGate {
    //~ `NewCheckout` is not a boolean flag
    FlagGate::enabled(NewCheckout)
}

pub fn gate_of_a_variant() -> FlagGate {
    //~ `NewCheckout` is not the name of a flag
    //~ pass the flag's key, a `&'static str`, or a flag declared with `flags!`
    FlagGate::variant(NewCheckout, "blue")
}
