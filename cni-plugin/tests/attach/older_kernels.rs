//! What kernels before 6.12 refuse, which delete connections by their whole tuples alone.

use std::net::UdpSocket;
use std::path::Path;

use serde_json::{Value, json};
use testbed::Plugin;

use crate::fixture::Fixture;
use crate::killed::traced;
use crate::ports::with_ports;

fn call(plugin: &Plugin, command: &str, id: &str, config: &Value) -> Result<Value, Value> {
    plugin.command(command, id, &Path::new("/run/netns").join(id), config).unwrap()
}

/// Which message to the kernel is the command's first that deletes connections.
fn first_deletion(fixture: &Fixture, command: &str, id: &str, config: &Value) -> usize {
    call(&traced(fixture, "-e trace=sendto -o /run/trace"), command, id, config).unwrap();
    let trace = fixture.node().shell("cat /run/trace").unwrap();
    let first = trace.lines().position(|line| line.contains("IPCTNL_MSG_CT_DELETE"));
    first.unwrap_or_else(|| panic!("{command} forgets nothing: {trace}")) + 1
}

/// Runs the command where the kernel says EINVAL to these messages.
fn refusing(fixture: &Fixture, messages: &str, command: &str, id: &str, config: &Value) {
    let options = format!("-o /run/trace -e trace=sendto -e inject=sendto:error=EINVAL:when={messages}");
    call(&traced(fixture, &options), command, id, config).unwrap();
    let trace = fixture.node().shell("cat /run/trace").unwrap();
    assert!(trace.contains("(INJECTED)"), "{trace}");
}

/// How many connections of the node are about this port or address.
fn flows(fixture: &Fixture, text: &str) -> String {
    fixture.node().shell(&format!("grep -c {text} /proc/net/nf_conntrack || true")).unwrap().trim().to_owned()
}

#[test]
fn add_and_del_forget_flows_by_their_whole_tuples() {
    let fixture = Fixture::new();
    let config = with_ports(json!([{ "hostPort": 5353, "containerPort": 80, "protocol": "udp" }]));
    let client = fixture.node().outside().run(|| UdpSocket::bind("192.0.2.1:4444").unwrap()).unwrap();
    let send = || assert_eq!(client.send_to(b"x", "192.0.2.2:5353").unwrap(), 1);
    // The network is known, and a flow to the port begins while nobody has it.
    fixture.add("b", &with_ports(json!([])));
    fixture.netns("a");
    let first = first_deletion(&fixture, "ADD", "a", &config);
    call(&fixture.plugin, "DEL", "a", &config).unwrap();
    send();
    assert_eq!(flows(&fixture, "dport=5353"), "1");
    refusing(&fixture, &first.to_string(), "ADD", "a", &config);
    assert_eq!(flows(&fixture, "dport=5353"), "0");
    // One by the port, one that the pod has begun, one to it from the node, and one that is nobody's business.
    let another = with_ports(json!([{ "hostPort": 5354, "containerPort": 80, "protocol": "udp" }]));
    fixture.add("c", &another);
    client.send_to(b"x", "192.0.2.2:5354").unwrap();
    let talk = || {
        let pod = fixture.node().netns(Path::new("/run/netns/a")).unwrap();
        let socket = pod.run(|| UdpSocket::bind("0.0.0.0:80").unwrap()).unwrap();
        socket.send_to(b"x", "192.0.2.1:9").unwrap();
        let address = fixture.json("ip -j -n a -4 address show eth0")[0]["addr_info"][0]["local"].clone();
        let address = address.as_str().unwrap().to_owned();
        send();
        fixture.node().run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", (&*address, 7)).unwrap());
        assert_eq!(flows(&fixture, "5353"), "1");
        assert_eq!(flows(&fixture, &address), "3");
        address
    };
    talk();
    let first = first_deletion(&fixture, "DEL", "a", &config);
    call(&fixture.plugin, "ADD", "a", &config).unwrap();
    let address = talk();
    refusing(&fixture, &first.to_string(), "DEL", "a", &config);
    assert_eq!(flows(&fixture, "5353"), "0");
    assert_eq!(flows(&fixture, &address), "0");
    assert_eq!(flows(&fixture, "5354"), "1");
}

/// The first deletion is refused, and so is the list.
#[test]
fn where_nobody_can_be_asked_for_flows_nothing_is_forgotten() {
    let fixture = Fixture::new();
    let config = with_ports(json!([{ "hostPort": 5353, "containerPort": 80, "protocol": "udp" }]));
    fixture.add("b", &with_ports(json!([])));
    fixture.netns("a");
    let add = first_deletion(&fixture, "ADD", "a", &config);
    let del = first_deletion(&fixture, "DEL", "a", &config);
    for (command, first) in [("ADD", add), ("DEL", del)] {
        refusing(&fixture, &format!("{first}..{}", first + 1), command, "a", &config);
    }
    fixture.quiet("DEL", "b", &config);
    fixture.assert_nothing_left();
}
