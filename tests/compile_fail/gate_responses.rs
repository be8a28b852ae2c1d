// Values that a closed gate cannot respond with.

use std::rc::Rc;

use actix_web::HttpResponse;
use flipswitch_actix::FlagGate;

pub fn a_number() -> FlagGate {
    //~ a gate cannot respond with `{integer}`
    //~ pass a `StatusCode`, or a function that returns a response: `|| HttpResponse::Gone()`
    FlagGate::enabled("beta").fallback(403)
}

pub fn a_response() -> FlagGate {
    //~ a gate cannot respond with `HttpResponse`
    FlagGate::enabled("beta").fallback(HttpResponse::Gone().finish())
}

pub fn a_function_that_returns_a_number() -> FlagGate {
    //~ a gate cannot respond with
    //~ and return a `Responder`
    FlagGate::enabled("beta").fallback(|| 403)
}

pub fn a_function_of_one_thread(text: Rc<str>) -> FlagGate {
    //~ a gate cannot respond with
    //~ all workers share the function, so it must be `Send + Sync + 'static`
    FlagGate::enabled("beta").fallback(move || text.to_string())
}
