// A flag that is used as a flag of another type.

use flipswitch::Flags;

flipswitch::flags! {
    pub MaxItems: i64 = "max-items", default 10;
}

pub fn read(flags: &Flags) -> bool {
    //~ `i64`
    flags.get(MaxItems)
}

pub async fn axum_handler(flipswitch_axum::Flag(on): flipswitch_axum::Flag<MaxItems>) {
    //~ `i64`
    if on {}
}

pub async fn actix_handler(flipswitch_actix::Flag(on): flipswitch_actix::Flag<MaxItems>) {
    //~ `i64`
    if on {}
}

pub fn axum_gate() -> flipswitch_axum::FlagGate {
    //~ `MaxItems` is not a boolean flag
    //~ pass the flag's key, a `&'static str`, or a flag declared with `flags!` as `bool`
    flipswitch_axum::FlagGate::enabled(MaxItems)
}

pub fn axum_gate_of_the_opposite() -> flipswitch_axum::FlagGate {
    //~ `MaxItems` is not a boolean flag
    flipswitch_axum::FlagGate::disabled(MaxItems)
}

pub fn actix_gate() -> flipswitch_actix::FlagGate {
    //~ `MaxItems` is not a boolean flag
    flipswitch_actix::FlagGate::enabled(MaxItems)
}

pub fn actix_guard() {
    //~ `MaxItems` is not a boolean flag
    //~ pass the flag's key, a `&'static str`, or a flag declared with `flags!` as `bool`
    let _ = flipswitch_actix::flag_on(MaxItems);
}

pub fn gate_of_a_string(key: String) -> flipswitch_axum::FlagGate {
    //~ String` is not a boolean flag
    flipswitch_axum::FlagGate::enabled(key)
}
