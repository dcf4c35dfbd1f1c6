"""A broker of one's own in a container, that can be killed and started again with what it held."""

import os
import socket
import subprocess
import sys
import time
from typing import Any

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

IMAGE = os.environ.get("KAFKA_IMAGE") or "apache/kafka:4.1.1"
LOGIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_me="{}";'


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _docker(*words: str) -> str:
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout.strip()


class Broker:
    """One node, on a port of this machine; `password`: logins by it alone, as the user `me`."""

    def __init__(self, password: str = "") -> None:
        port = _free_port()
        settings = {
            "NODE_ID": "1", "PROCESS_ROLES": "broker,controller", "CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
            "LISTENERS": "CLIENT://:9092,CONTROLLER://:9093,INTERNAL://localhost:19092",
            "ADVERTISED_LISTENERS": f"CLIENT://127.0.0.1:{port},INTERNAL://localhost:19092",
            "LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,INTERNAL:PLAINTEXT,CLIENT:"
            + ("SASL_PLAINTEXT" if password else "PLAINTEXT"),
            "CONTROLLER_LISTENER_NAMES": "CONTROLLER", "INTER_BROKER_LISTENER_NAME": "INTERNAL",
            "OFFSETS_TOPIC_REPLICATION_FACTOR": "1", "TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
            "TRANSACTION_STATE_LOG_MIN_ISR": "1", "GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
            "AUTO_CREATE_TOPICS_ENABLE": "false", "HEAP_OPTS": "-Xms256m -Xmx512m",
            "LOG_RETENTION_CHECK_INTERVAL_MS": "500", "LOG_SEGMENT_DELETE_DELAY_MS": "100",
        }  # fmt: skip
        self.login: dict[str, Any] = {}
        if password:
            settings |= {"SASL_ENABLED_MECHANISMS": "PLAIN",
                         "LISTENER_NAME_CLIENT_PLAIN_SASL_JAAS_CONFIG": LOGIN.format(password)}  # fmt: skip
            self.login = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN", "sasl.username": "me",
                          "sasl.password": password}  # fmt: skip
        words = [word for name, value in settings.items() for word in ("-e", f"KAFKA_{name}={value}")]
        self.container = _docker("run", "-d", "-p", f"127.0.0.1:{port}:9092", *words, IMAGE)
        self.servers = f"127.0.0.1:{port}"
        self.admin = AdminClient({"bootstrap.servers": self.servers, "log_level": 0, **self.login})
        try:
            self.wait()
        except BaseException:
            self.remove()
            raise

    def wait(self) -> None:
        """Until it answers."""
        for _ in range(240):
            try:
                self.admin.list_topics(timeout=2)
                return
            except KafkaException:
                time.sleep(0.5)
        raise RuntimeError(f"the broker does not start:\n{_docker('logs', '--tail', '20', self.container)}")

    def make(self, topic: str, partitions: int, **settings: str) -> None:
        new = NewTopic(topic, partitions, 1, config={name.replace("_", "."): value for name, value in settings.items()})
        self.admin.create_topics([new])[topic].result(30)

    def forget(self, topic: str, partition: int, before: int) -> None:
        """Deletes the messages before that offset, as retention would."""
        for done in self.admin.delete_records([TopicPartition(topic, partition, before)]).values():
            done.result(30)

    def restart(self) -> None:
        """kill -9, and a new start."""
        _docker("kill", "--signal", "KILL", self.container)
        _docker("start", self.container)
        self.wait()

    def remove(self) -> None:
        subprocess.run(["docker", "rm", "-f", "-v", self.container], capture_output=True, check=False)


if __name__ == "__main__":  # TOPIC PARTITIONS: prints where it is, and goes when its standard input ends
    one = Broker()
    try:
        one.make(sys.argv[1], int(sys.argv[2]))
        print(one.servers, flush=True)
        sys.stdin.read()
    finally:
        one.remove()
