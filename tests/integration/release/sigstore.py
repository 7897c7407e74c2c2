"""A Sigstore in a test: its certificate authority, its two logs, and what a keyless signer gets.

The client of Sigstore asks the network while it signs, and only the keys of Sigstore while it
verifies. So the test signs with a key, and puts in what the services would have answered: a short
certificate for an identity, with the receipt of the log of certificates (RFC 6962), and an entry of
the log of signatures (Rekor, dsse 0.0.1) with its proof, checkpoint and promise.
"""

import base64
import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.integration.release.keys import Key, certificate

ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
RECEIPTS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def spki(key: Key) -> bytes:
    return key.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id(key: Key) -> bytes:
    return hashlib.sha256(spki(key)).digest()


def sign(key: Key, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


class Sigstore:
    """One instance, with keys of its own."""

    def __init__(self) -> None:
        self.authority, self.receipts, self.log = (
            ec.generate_private_key(ec.SECP256R1()) for _ in range(3)
        )
        self.root = certificate("root", self.authority, None, self.authority, ca=True)

    def write_trust_config(self, path: Path) -> Path:
        """Write the keys of the instance as its clients read them."""

        def log(url: str, key: Key) -> dict[str, Any]:
            public = {"rawBytes": b64(spki(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                      "validFor": {"start": "2020-01-01T00:00:00Z"}}  # fmt: skip
            return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": public,
                    "logId": {"keyId": b64(key_id(key))}}  # fmt: skip

        chain = {"certificates": [{"rawBytes": b64(self.root.public_bytes(DER))}]}
        authority = {
            "subject": {"organization": "test", "commonName": "root"}, "certChain": chain,
            "uri": "http://127.0.0.1:9", "validFor": {"start": "2020-01-01T00:00:00Z"},
        }  # fmt: skip
        media = "application/vnd.dev.sigstore."
        trusted = {
            "mediaType": f"{media}trustedroot+json;version=0.1",
            "tlogs": [log("http://127.0.0.1:9", self.log)], "certificateAuthorities": [authority],
            "ctlogs": [log("http://127.0.0.1:9/ct", self.receipts)], "timestampAuthorities": [],
        }  # fmt: skip
        signing = {
            "mediaType": f"{media}signingconfig.v0.2+json", "caUrls": [], "oidcUrls": [],
            "rekorTlogUrls": [], "tsaUrls": [], "rekorTlogConfig": {"selector": "ANY"},
            "tsaConfig": {"selector": "ANY"},
        }  # fmt: skip
        document = {"mediaType": f"{media}clienttrustconfig.v0.1+json", "trustedRoot": trusted,
                    "signingConfig": signing}  # fmt: skip
        path.write_text(json.dumps(document))
        return path

    def vouch(self, signature: Path, key: Key, identity: str, issuer: str) -> None:
        """Make the signature of a key the keyless one of an identity."""
        bundle = json.loads(signature.read_text())
        found = self.certify(key, identity, issuer)
        material = {
            "certificate": {"rawBytes": b64(found.public_bytes(DER))},
            "tlogEntries": [self.entry(bundle["dsseEnvelope"], found)],
            "timestampVerificationData": {"rfc3161Timestamps": []},
        }
        bundle["verificationMaterial"] = material
        bundle["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.3+json"
        signature.write_text(json.dumps(bundle))

    def certify(self, key: Key, identity: str, issuer: str) -> x509.Certificate:
        """Return a certificate of ten minutes, with the receipt of the log of certificates."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(minutes=5))
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, False, False, False, False), True
            )
            .add_extension(
                x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CODE_SIGNING]), False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()),
                False,
            )
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(identity)]), True)
            .add_extension(x509.UnrecognizedExtension(ISSUER, issuer.encode()), False)
        )
        before = builder.sign(self.authority, hashes.SHA256()).tbs_certificate_bytes
        time_ms = int(now.timestamp() * 1000)
        entry = key_id(self.authority) + len(before).to_bytes(3, "big") + before
        signed = struct.pack("!BBQH", 0, 0, time_ms, 1) + entry + b"\0\0"
        proof = sign(self.receipts, signed)
        receipt = (
            b"\0" + key_id(self.receipts) + struct.pack("!QHBBH", time_ms, 0, 4, 3, len(proof))
        )
        receipt += proof
        listed = struct.pack("!HH", len(receipt) + 2, len(receipt)) + receipt
        octets = b"\x04" + (
            bytes([len(listed)]) if len(listed) < 128 else b"\x81" + bytes([len(listed)])
        )
        builder = builder.add_extension(
            x509.UnrecognizedExtension(RECEIPTS, octets + listed), False
        )
        return builder.sign(self.authority, hashes.SHA256())

    def entry(self, envelope: dict[str, Any], found: x509.Certificate) -> dict[str, Any]:
        """Return the first entry of a log of signatures, for a signed envelope."""
        payload = base64.b64decode(envelope["payload"])
        one = {
            "signature": envelope["signatures"][0]["sig"],
            "verifier": b64(found.public_bytes(PEM)),
        }
        hashed = {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()}
        spec = {"envelopeHash": hashed, "payloadHash": hashed, "signatures": [one]}
        content = {"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}
        body = json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"log - 1\n1\n{b64(root)}\n"
        mark = b64(key_id(self.log)[:4] + sign(self.log, note.encode()))
        now = int(datetime.now(UTC).timestamp())
        promised = {"body": b64(body), "integratedTime": now, "logID": key_id(self.log).hex(),
                    "logIndex": 0}  # fmt: skip
        promise = json.dumps(promised, separators=(",", ":"), sort_keys=True).encode()
        return {
            "logIndex": "0", "logId": {"keyId": b64(key_id(self.log))}, "integratedTime": str(now),
            "kindVersion": {"kind": "dsse", "version": "0.0.1"}, "canonicalizedBody": b64(body),
            "inclusionPromise": {"signedEntryTimestamp": b64(sign(self.log, promise))},
            "inclusionProof": {
                "logIndex": "0", "rootHash": b64(root), "treeSize": "1", "hashes": [],
                "checkpoint": {"envelope": f"{note}\n\u2014 log {mark}\n"},
            },
        }  # fmt: skip
