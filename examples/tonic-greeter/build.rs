//! Generates the greeter's client and server from its description below: no protoc, no .proto file.

use tonic_prost_build::manual::{Builder, Method, Service};

fn main() {
    let hello = Method::builder()
        .name("say_hello")
        .route_name("SayHello")
        .input_type("crate::HelloRequest")
        .output_type("crate::HelloReply")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    let greeter = Service::builder()
        .name("Greeter")
        .package("helloworld")
        .method(hello)
        .build();
    Builder::new().compile(&[greeter]);
}
