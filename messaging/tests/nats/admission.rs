//! Ways in that work.

use std::fs;

use data_encoding::BASE64URL_NOPAD;
use messaging::{NatsOptions, Network};
use nkeys::KeyPair;
use testkit::{Certificates, NatsServer, NatsSettings};

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
    let key = KeyPair::new_user();
    let file = std::env::temp_dir().join(format!("nkey-{}", std::process::id()));
    fs::write(&file, format!("{}\n", key.seed().unwrap())).unwrap();
    let settings = NatsSettings::with_nkey(&key.public_key());
    check(settings, |options| options.nkey_seed_file = Some(file.clone())).await;
    fs::remove_file(&file).unwrap();
}

/// Accounts that an operator signed, as JWTs.
#[tokio::test]
async fn credentials_file() {
    let (operator, system, account, user) = (
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_account(),
        KeyPair::new_user(),
    );
    let operator_claims = r#""type":"operator""#;
    let unlimited = |also| {
        format!(
            r#""type":"account","limits":{{"subs":-1,"data":-1,"payload":-1,"imports":-1,
                "exports":-1,"wildcards":true,"conn":-1,"leaf":-1{also}}}"#
        )
    };
    let storage = r#","mem_storage":-1,"disk_storage":-1,"streams":-1,"consumer":-1"#;
    let user_claims = r#""type":"user","subs":-1,"data":-1,"payload":-1"#;
    let preloaded = format!(
        "operator: {}\nresolver: MEMORY\nsystem_account: {1}\n\
         resolver_preload: {{ {1}: {2}, {3}: {4} }}",
        jwt(&operator, &operator, operator_claims),
        system.public_key(),
        jwt(&operator, &system, &unlimited("")),
        account.public_key(),
        jwt(&operator, &account, &unlimited(storage)),
    );
    let credentials = format!(
        "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        jwt(&account, &user, user_claims),
        user.seed().unwrap(),
    );
    let file = std::env::temp_dir().join(format!("creds-{}", std::process::id()));
    fs::write(&file, credentials).unwrap();
    let settings = NatsSettings::with(preloaded);
    check(settings, |options| options.credentials_file = Some(file.clone())).await;
    fs::remove_file(&file).unwrap();
}

fn jwt(issuer: &KeyPair, subject: &KeyPair, claims: &str) -> String {
    let (issued_by, about) = (issuer.public_key(), subject.public_key());
    let body = format!(
        r#"{{"jti":"x","iat":1,"iss":"{issued_by}","name":"x","sub":"{about}",
            "nats":{{"version":2,{claims}}}}}"#
    );
    let header = BASE64URL_NOPAD.encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let signed = format!("{header}.{}", BASE64URL_NOPAD.encode(body.as_bytes()));
    let signature = BASE64URL_NOPAD.encode(&issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn tls() {
    let files = Certificates::new(&["ours"]);
    let (certificate, key, ca) =
        (files.path("ours-chain"), files.path("ours-key"), files.path("ours-ca"));
    let trusting = |options: &mut NatsOptions| options.tls_ca_file = Some(ca.clone());
    check(NatsSettings::with_tls(&certificate, &key, None), trusting).await;
    let known = |options: &mut NatsOptions| {
        options.tls_ca_file = Some(ca.clone());
        options.tls_certificate_file = Some(certificate.clone());
        options.tls_key_file = Some(key.clone());
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
