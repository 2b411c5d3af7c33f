"""Authenticates Schemathesis: anonymous, with an admin's session, or with a token, as the variable AS says.

A case may log out, or delete or suspend the account. The next request then uses a new account.
"""

import os
import subprocess
import time
import uuid

import requests
import schemathesis

API = os.environ["API"]
MAIL = os.environ["MAIL"]
ADMIN = os.environ["ADMIN"]
PASSWORD = "correct horse battery staple"
SITE = {"Sec-Fetch-Site": "same-origin"}


class Person:
    """An admin who has signed up, verified the address and logged in."""

    def __init__(self):
        self.email = f"{uuid.uuid4().hex}@example.com"
        self.http = requests.Session()
        self.http.headers.update(SITE)
        self._post("/accounts", email=self.email, password=PASSWORD)
        self._post("/email-verifications/redeem", token=self._mailed_token(), password=PASSWORD)
        subprocess.run([ADMIN, "account", "grant", self.email, "admin"], check=True, capture_output=True)
        self._post("/session", email=self.email, password=PASSWORD)
        document = requests.get(f"{API}/openapi.json", timeout=20).json()
        scopes = document["components"]["schemas"]["Scope"]["enum"]
        answer = self._post("/tokens", name="contract", scopes=scopes, expires_in_days=1)
        self.token = answer.json()["secret"]

    def _post(self, path, **body):
        answer = self.http.post(f"{API}/api/v1{path}", json=body, timeout=20)
        answer.raise_for_status()
        return answer

    def _mailed_token(self):
        for _ in range(400):
            answer = requests.get(f"{MAIL}/latest", params={"to": self.email}, timeout=20)
            if answer.ok and "token=" in answer.text:
                return answer.text.split("token=")[1].split()[0]
            time.sleep(0.05)
        raise RuntimeError(f"no mail came for {self.email}")

    def is_known(self):
        # An earlier case may have ended the session or the token.
        by_token = requests.get(f"{API}/api/v1/tokens", headers={"Authorization": f"Bearer {self.token}"}, timeout=20)
        return by_token.ok and self.http.get(f"{API}/api/v1/session", timeout=20).ok

    def cookie(self):
        return self.http.cookies.get("id")


person = None


def somebody():
    global person
    if person is None or not person.is_known():
        person = Person()
    return person


if os.environ["AS"] == "session":

    @schemathesis.auth(refresh_interval=None)
    class SessionAuth:
        def get(self, case, context):
            return somebody().cookie()

        def set(self, case, data, context):
            case.cookies = {**(case.cookies or {}), "id": data}
            case.headers.update(SITE)


if os.environ["AS"] == "token":

    @schemathesis.auth(refresh_interval=None)
    class TokenAuth:
        def get(self, case, context):
            return somebody().token

        def set(self, case, data, context):
            case.headers["Authorization"] = f"Bearer {data}"
