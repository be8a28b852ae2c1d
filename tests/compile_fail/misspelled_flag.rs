// A flag whose name is misspelled.

flipswitch::flags! {
    pub NewCheckout: bool = "new-checkout", default false;
}

pub fn read(flags: &flipswitch::Flags) -> bool {
    //~ `NewChekout`
    flags.get(NewChekout)
}
