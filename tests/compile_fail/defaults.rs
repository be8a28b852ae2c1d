// Defaults whose type is not the type of the flag.

flipswitch::flags! {
    //~ a flag of type `i64` cannot have a default of type `&str`
    //~ a value that converts into `i64` can be used with `.into()`
    pub MaxItems: i64 = "max-items", default "10";
    //~ a flag of type `bool` cannot have a default of type `{integer}`
    pub NewCheckout: bool = "new-checkout", default 0;
    //~ String` cannot have a default of type `bool`
    pub Theme: String = "theme", default false;
    //~ a flag of type `u8` cannot have a default of type `f64`
    pub Percentage: u8 = "percentage", default 0.5_f64;
}
