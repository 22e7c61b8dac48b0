//! Clients that leave: their blocks are free at once.

use axum::http::Request;
use http_body_util::BodyExt;
use pageloom::api::router;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use crate::support::{Server, Setup, post, slow_steps};

/// A server whose steps take time, so that requests are still running when their clients leave.
fn slow() -> Server {
    Server::with(Setup {
        sim: slow_steps(),
        ..Setup::default()
    })
}

fn long(stream: bool) -> Value {
    json!({"prompt": "a b c", "max_tokens": 400, "ignore_eos": true, "stream": stream, "n": 2})
}

#[tokio::test]
async fn dropping_a_stream_frees_its_blocks() {
    let server = slow();
    let app = router(server.app.clone());
    let response = app
        .oneshot(post("/v1/completions", long(true)))
        .await
        .unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    assert!(server.stats().num_referenced_blocks > 0);
    drop(body);
    server.until_idle().await;
    assert_eq!(server.stats().finished.abort, 2);
}

/// Serves over TCP, so that hyper has to notice that the other side is gone.
async fn listen(server: &Server) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = router(server.app.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

async fn connect(address: std::net::SocketAddr, body: &Value) -> TcpStream {
    let request = Request::post("/v1/completions")
        .body(body.to_string())
        .unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        request.uri(),
        request.body().len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(request.body().as_bytes()).await.unwrap();
    socket
}

#[tokio::test]
async fn closing_the_connection_frees_the_blocks_streamed_or_not() {
    let server = slow();
    let address = listen(&server).await;
    for stream in [true, false] {
        let aborted = server.stats().finished.abort;
        let mut socket = connect(address, &long(stream)).await;
        server
            .until("running", |stats| stats.num_running == 2)
            .await;
        if stream {
            let mut some = [0; 200];
            socket.read_exact(&mut some).await.unwrap();
        }
        drop(socket);
        server.until_idle().await;
        assert_eq!(
            server.stats().finished.abort,
            aborted + 2,
            "stream: {stream}"
        );
    }
}

#[tokio::test]
async fn a_third_of_many_clients_leaving_harms_no_other() {
    let server = slow();
    let address = listen(&server).await;
    let clients = (0..200).map(|i| async move {
        let body =
            json!({"prompt": [30 + i], "max_tokens": 20, "ignore_eos": true, "stream": true});
        let mut socket = connect(address, &body).await;
        if i % 3 == 0 {
            let mut some = [0; 300];
            socket.read_exact(&mut some).await.unwrap();
            return;
        }
        let mut text = Vec::new();
        loop {
            let mut some = [0; 1000];
            let read = socket.read(&mut some).await.unwrap();
            assert!(read > 0, "the connection ended early");
            text.extend_from_slice(&some[..read]);
            if String::from_utf8_lossy(&text).contains("data: [DONE]") {
                break;
            }
        }
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains(r#""finish_reason":"length""#) && !text.contains("error"),
            "{text}"
        );
    });
    futures_util::future::join_all(clients).await;
    server.until_idle().await;
    let stats = server.stats();
    assert_eq!(stats.finished.length + stats.finished.abort, 200);
    assert!(stats.finished.length >= 133 && stats.finished.error == 0);
}
