//! Questions to name servers, by UDP.
//!
//! **Invariant:** an answer counts only if it comes from the server that was asked, with the random number and the question
//! of the query.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, rdata::RData};
use socket2::{Protocol, Type};

use super::{Failure, Via, icmp, socket};
use crate::model::uplink::Family;

/// What a name server may send without EDNS is 512 bytes; some send more.
const BUFFER: usize = 4096;

/// Asks a name server for the servers of the root, which every resolver has at hand. Every answer counts but SERVFAIL and
/// REFUSED: the first says that the server itself has no line, the second that it is none for us.
pub(super) async fn ask(via: &Via, server: SocketAddr) -> Result<Duration, Failure> {
    socket::check(via, server.ip()).await?;
    let started = Instant::now();
    let answer = query(via, server, ".", TYPE::NS).await?;
    let latency = started.elapsed();
    let packet = Packet::parse(&answer).map_err(|error| Failure::Protocol(error.to_string()))?;
    match packet.rcode() {
        RCODE::ServerFailure | RCODE::Refused => Err(failure(packet.rcode())),
        _ => Ok(latency),
    }
}

/// The first address of a name, by the member's name server.
pub(super) async fn resolve(via: &Via, name: &str) -> Result<IpAddr, Failure> {
    let server = via.resolver.filter(|server| server.is_ipv4() == (via.family == Family::V4));
    let server = server.ok_or(Failure::NoResolver)?;
    socket::check(via, server.ip()).await?;
    let kind = if server.is_ipv4() { TYPE::A } else { TYPE::AAAA };
    let answer = query(via, server, name, kind).await?;
    let packet = Packet::parse(&answer).map_err(|error| Failure::Protocol(error.to_string()))?;
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return Err(Failure::NoName),
        other => return Err(failure(other)),
    }
    let addresses = packet.answers.iter().filter_map(|record| match (&record.rdata, via.family) {
        (RData::A(a), Family::V4) => Some(IpAddr::V4(a.address.into())),
        (RData::AAAA(aaaa), Family::V6) => Some(IpAddr::V6(aaaa.address.into())),
        _ => None,
    });
    addresses.into_iter().next().ok_or(Failure::OtherFamily)
}

fn failure(code: RCODE) -> Failure {
    Failure::Answer(match code {
        RCODE::ServerFailure => "SERVFAIL".to_owned(),
        RCODE::Refused => "REFUSED".to_owned(),
        other => format!("{other:?}"),
    })
}

/// The answer to a question.
async fn query(via: &Via, server: SocketAddr, name: &str, kind: TYPE) -> Result<Vec<u8>, Failure> {
    let [high, low, ..] = icmp::random().to_be_bytes();
    let query = encode(u16::from_be_bytes([high, low]), name, kind)?;
    let socket = socket::open(via, Type::DGRAM, Protocol::UDP)?;
    socket.connect(&server.into())?;
    let socket = tokio::net::UdpSocket::from_std(UdpSocket::from(socket))?;
    socket.send(&query).await?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_answer(&query, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

fn encode(id: u16, name: &str, kind: TYPE) -> Result<Vec<u8>, Failure> {
    let wrong = |error: simple_dns::SimpleDnsError| Failure::Error(error.to_string());
    let mut query = Packet::new_query(id);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).map_err(wrong)?;
    query.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    query.build_bytes_vec().map_err(wrong)
}

/// Whether a message answers the query: its number, and its question unless the server left that out, as some do with an
/// error. A message that does not parse is an answer only in the caller's eyes.
fn is_answer(query: &[u8], message: &[u8]) -> bool {
    const IS_RESPONSE: u8 = 0x80;
    const HEADER: usize = 12;
    let is_response = message.len() >= HEADER && message[..2] == query[..2] && message[2] & IS_RESPONSE != 0;
    let asked = |bytes: &[u8]| Packet::parse(bytes).ok().map(|packet| packet.questions.first().map(question));
    is_response
        && match asked(message) {
            Some(Some(question)) => asked(query) == Some(Some(question)),
            Some(None) | None => true,
        }
}

fn question(question: &Question<'_>) -> (String, QTYPE) {
    (question.qname.to_string().to_ascii_lowercase(), question.qtype)
}

#[cfg(test)]
mod tests {
    use simple_dns::{Packet, Question, TYPE};

    use super::{encode, is_answer};

    #[test]
    fn answers_have_the_number_and_the_question() {
        let query = encode(0x1234, ".", TYPE::NS).expect("a query");
        assert_eq!(query.len(), 12 + 5, "the root has no labels");
        let reply = |id, name, kind| {
            let asked = encode(id, name, kind).expect("a query");
            let mut reply = Packet::new_reply(id);
            reply
                .questions
                .extend(Packet::parse(&asked).expect("a packet").questions.into_iter().map(Question::into_owned));
            reply.build_bytes_vec().expect("a reply")
        };
        assert!(is_answer(&query, &reply(0x1234, ".", TYPE::NS)));
        assert!(!is_answer(&query, &reply(0x1235, ".", TYPE::NS)), "another number");
        assert!(!is_answer(&query, &reply(0x1234, ".", TYPE::A)), "another question");
        assert!(!is_answer(&query, &query), "a query");
        assert!(!is_answer(&query, &[]) && !is_answer(&query, &[0x12, 0x34, 0x80]), "cut");
        let without_question = Packet::new_reply(0x1234).build_bytes_vec().expect("a reply");
        assert!(is_answer(&query, &without_question));
    }
}
