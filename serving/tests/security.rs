//! TLS, certificates of clients, tokens: who gets in, who does not, and what changes while the server runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use foreshard_api::{ClientCertificate, ClientError, Credentials, ForecastClient, Secret};
use foreshard_serving::{RunningServer, ServingConfig, ServingError, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Code;

/// An authority that signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> Vec<u8> {
        self.0.pem().into_bytes()
    }

    /// A certificate for a name and its key, PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    fn write(&self, name: &str, dir: &Path) -> (PathBuf, PathBuf) {
        let (cert, key) = self.issue(name);
        let paths = (dir.join("cert.pem"), dir.join("key.pem"));
        fs::write(&paths.0, cert).unwrap();
        fs::write(&paths.1, key).unwrap();
        paths
    }

    fn trusted(&self) -> Credentials {
        Credentials { ca: Some(self.pem()), server_name: Some("serving.test".into()), ..Credentials::default() }
    }
}

fn secured(place: &Place, authority: &Authority, clients: Option<&Authority>) -> ServingConfig {
    let (cert, key) = authority.write("serving.test", place.dir.path());
    let client_ca = clients.map(|clients| {
        let path = place.dir.path().join("clients.pem");
        fs::write(&path, clients.pem()).unwrap();
        path
    });
    // Everywhere, as only a server with TLS may be.
    ServingConfig {
        listen: "0.0.0.0:0".parse().unwrap(),
        tls: Some(TlsFiles { cert, key, client_ca }),
        reload_every: Duration::from_millis(20),
        ..place.config()
    }
}

fn here(server: &RunningServer) -> String {
    format!("https://127.0.0.1:{}", server.addr().port())
}

async fn connected(server: &RunningServer, credentials: &Credentials) -> Result<ForecastClient, ClientError> {
    ForecastClient::connect_with(&here(server), credentials).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_clients_that_trust_the_authority_talk_over_tls() {
    let (place, authority) = (Place::new(), Authority::new());
    let server = place.start(secured(&place, &authority, None)).await;
    let client = connected(&server, &authority.trusted()).await.unwrap();
    client.ingest(rows("a", 20)).await.unwrap();
    assert_eq!(client.forecast(&next_hours(&["a"])).await.unwrap().len(), 1);

    let mistrusting = Authority::new().trusted();
    assert!(matches!(connected(&server, &mistrusting).await, Err(ClientError::Connect { .. })));
    let other_name = Credentials { server_name: Some("other.test".into()), ..authority.trusted() };
    assert!(connected(&server, &other_name).await.is_err(), "the certificate is for another name");
    let plain = ForecastClient::connect(&here(&server).replace("https", "http")).await;
    let answered = match plain {
        Ok(client) => client.forecast(&next_hours(&["a"])).await.is_ok(),
        Err(_) => false,
    };
    assert!(!answered, "nothing is answered in plain");
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_authority_of_clients_only_theirs_get_in() {
    let (place, authority, clients) = (Place::new(), Authority::new(), Authority::new());
    let server = place.start(secured(&place, &authority, Some(&clients))).await;
    let with = |(cert, key): (String, String)| {
        let certificate = Some(ClientCertificate { cert: cert.into_bytes(), key: Secret::new(key) });
        Credentials { certificate, ..authority.trusted() }
    };
    let good = connected(&server, &with(clients.issue("client"))).await.unwrap();
    good.ingest(rows("a", 20)).await.unwrap();
    // With TLS 1.3 the client learns only at its first call that it was not let in.
    for bad in [authority.trusted(), with(authority.issue("client")), with(Authority::new().issue("client"))] {
        let answered = match connected(&server, &bad).await {
            Ok(client) => client.forecast(&next_hours(&["a"])).await.is_ok(),
            Err(_) => false,
        };
        assert!(!answered);
    }
    assert_eq!(good.forecast(&next_hours(&["a"])).await.unwrap().len(), 1);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_offered_without_a_restart() {
    let (place, old, new) = (Place::new(), Authority::new(), Authority::new());
    let server = place.start(secured(&place, &old, None)).await;
    let client = connected(&server, &old.trusted()).await.unwrap();
    client.ingest(rows("a", 20)).await.unwrap();
    fs::write(place.dir.path().join("cert.pem"), "no certificate").unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(connected(&server, &old.trusted()).await.is_ok(), "a broken one changes nothing");
    new.write("serving.test", place.dir.path());
    while connected(&server, &new.trusted()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(connected(&server, &old.trusted()).await.is_err());
    assert_eq!(client.forecast(&next_hours(&["a"])).await.unwrap().len(), 1, "open connections go on");
    server.shutdown().await.unwrap();
}

async fn refused(config: ServingConfig, place: &Place) -> ServingError {
    let loader = std::sync::Arc::new(TestLoader(std::sync::Arc::clone(&place.gate)));
    let started = foreshard_serving::start_with(config, std::sync::Arc::clone(&place.clock) as _, loader).await;
    started.err().expect("it does not start")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_unsafe_does_not_start() {
    let (place, authority) = (Place::new(), Authority::new());
    let everywhere = ServingConfig { listen: "0.0.0.0:0".parse().unwrap(), ..place.config() };
    let error = refused(everywhere.clone(), &place).await.to_string();
    assert!(error.contains("without TLS") && error.contains("without_tls"), "{error}");
    let server = place.start(ServingConfig { without_tls: true, ..everywhere }).await;
    server.shutdown().await.unwrap();

    let good = secured(&place, &authority, None);
    let tls = good.tls.clone().unwrap();
    let with = |tls: TlsFiles| ServingConfig { tls: Some(tls), ..good.clone() };
    let missing = refused(with(TlsFiles { key: "/nowhere.pem".into(), ..tls.clone() }), &place).await;
    assert!(matches!(missing, ServingError::Tls(foreshard_serving::TlsError::Io { .. })), "{missing:?}");
    let mixed = refused(with(TlsFiles { key: tls.cert.clone(), ..tls.clone() }), &place).await;
    assert!(matches!(mixed, ServingError::Tls(foreshard_serving::TlsError::Pem { .. })), "{mixed:?}");
    let other = place.dir.path().join("other.pem");
    fs::write(&other, authority.issue("serving.test").1).unwrap();
    let foreign = refused(with(TlsFiles { key: other, ..tls }), &place).await;
    assert!(matches!(foreign, ServingError::Tls(foreshard_serving::TlsError::Identity { .. })), "{foreign:?}");
    let tokens = ServingConfig { tokens: Some(place.dir.path().join("no such file")), ..place.config() };
    assert!(matches!(refused(tokens, &place).await, ServingError::Tokens(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_open_what_their_rights_say_and_nothing_else() {
    let (place, authority) = (Place::new(), Authority::new());
    place.publish(1);
    place.label(1);
    let tokens = place.dir.path().join("tokens");
    fs::write(&tokens, "planner read the-token-of-the-planner\nagent ingest the-token-of-the-agent\n").unwrap();
    let http = Some("127.0.0.1:0".parse().unwrap());
    let config = ServingConfig { tokens: Some(tokens.clone()), http, ..secured(&place, &authority, None) };
    let server = place.start(config).await;
    let with = |token: &str| Credentials { token: Some(Secret::new(token)), ..authority.trusted() };
    let planner = connected(&server, &with("the-token-of-the-planner")).await.unwrap();
    let agent = connected(&server, &with("the-token-of-the-agent")).await.unwrap();
    assert_eq!(agent.ingest(rows("a", 20)).await.unwrap().accepted, 20);
    assert_eq!(code(planner.ingest(rows("a", 20)).await), Code::PermissionDenied);
    assert_eq!(planner.forecast(&next_hours(&["a"])).await.unwrap().len(), 1);
    assert_eq!(code(agent.forecast(&next_hours(&["a"])).await), Code::PermissionDenied);
    assert_eq!(code(agent.models().await), Code::PermissionDenied);
    for nobody in [authority.trusted(), with("the-token-of-nobody")] {
        let nobody = connected(&server, &nobody).await.unwrap();
        assert_eq!(code(nobody.forecast(&next_hours(&["a"])).await), Code::Unauthenticated);
        assert_eq!(code(nobody.ingest(rows("a", 1)).await), Code::Unauthenticated);
    }
    // A token that is taken away counts no more, over an open connection too.
    fs::write(&tokens, "planner read another-token-of-the-planner\n").unwrap();
    while planner.forecast(&next_hours(&["a"])).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(code(planner.forecast(&next_hours(&["a"])).await), Code::Unauthenticated);
    let planner = connected(&server, &with("another-token-of-the-planner")).await.unwrap();
    assert_eq!(planner.forecast(&next_hours(&["a"])).await.unwrap().len(), 1);
    server.shutdown().await.unwrap();
}
