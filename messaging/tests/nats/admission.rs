//! Ways in that work.

use std::fs;

use messaging::{NatsOptions, Network};
use testkit::{NatsServer, NatsSettings};

use crate::certificates::Certificates;
use crate::{DEADLINE, value};

async fn check(settings: NatsSettings, change: impl FnOnce(&mut NatsOptions)) {
    let server = NatsServer::start_with(settings);
    let mut options = NatsOptions::new(server.url());
    change(&mut options);
    let network = Network::connect(options).await.unwrap();
    network.registry.put("k", value("v"));
    assert!(network.flush(DEADLINE).await && network.is_connected());
}

#[tokio::test]
async fn user_and_password() {
    let server = || NatsSettings::with_password("joe", "secret");
    check(server(), |options| options.url = options.url.replace("://", "://joe:secret@")).await;
    let with_options = |options: &mut NatsOptions| {
        options.user = Some("joe".to_string());
        options.password = Some("secret".to_string());
    };
    check(server(), with_options).await;
}

#[tokio::test]
async fn token() {
    let server = || NatsSettings::with_token("secret");
    check(server(), |options| options.url = options.url.replace("://", "://secret@")).await;
    check(server(), |options| options.token = Some("secret".to_string())).await;
}

#[tokio::test]
async fn nkey() {
    let key = nkeys::KeyPair::new_user();
    let file = std::env::temp_dir().join(format!("nkey-{}", std::process::id()));
    fs::write(&file, format!("{}\n", key.seed().unwrap())).unwrap();
    let settings = NatsSettings::with_nkey(&key.public_key());
    check(settings, |options| options.nkey_seed_file = Some(file.clone())).await;
    fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn tls() {
    let files = Certificates::new("admission");
    let (certificate, key, ca) =
        (files.path("server.pem"), files.path("server.key"), files.path("ca.pem"));
    let trusting = |options: &mut NatsOptions| options.tls_ca_file = Some(ca.clone());
    check(NatsSettings::with_tls(&certificate, &key, None), trusting).await;
    let known = |options: &mut NatsOptions| {
        options.tls_ca_file = Some(ca.clone());
        options.tls_certificate_file = Some(files.path("client.pem"));
        options.tls_key_file = Some(files.path("client.key"));
    };
    check(NatsSettings::with_tls(&certificate, &key, Some(&ca)), known).await;
}

/// A server that comes later is waited for.
#[tokio::test]
async fn patience() {
    let mut server = NatsServer::start();
    server.kill();
    let connecting = tokio::spawn(Network::connect(NatsOptions::new(server.url())));
    tokio::task::yield_now().await;
    server.restart();
    assert!(connecting.await.unwrap().unwrap().is_connected());
}
