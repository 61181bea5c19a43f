// Drives every token call of @unit-finance/unit-node-sdk.
"use strict";

const { Unit, UnitError } = require("@unit-finance/unit-node-sdk");
const { assert, step, refused, main } = require("./steps");

const { BASE, ADMIN, SECRET, WITHOUT_SCOPE, USER, ROOT } = process.env;
const tokens = (secret) => new Unit(secret, BASE).orgTokens;
const at = (days) => new Date(Date.now() + days * 86_400_000).toISOString();
const request = (attributes) => ({
  type: "apiToken",
  attributes: { description: "made by the SDK", scope: "accounts", expiration: at(1), ...attributes },
});

// failure checks the form in which the client hands errors on.
async function failure(promise, status, code) {
  const e = await refused(promise);
  assert.ok(e instanceof UnitError, `not the client's own error: ${e}`);
  assert.ok(e.errors.length > 0, `the client dropped the errors: ${e.message}`);
  for (const item of e.errors) {
    assert.equal(item.status, status);
    assert.equal(item.code, code);
    assert.ok(item.title && item.detail && item.detail === item.details);
  }
  return e.errors;
}

main(async () => {
  const mine = tokens(SECRET);
  let made;

  await step("create", async () => {
    ({ data: made } = await mine.create(USER, request({
      scope: "accounts user:api-token:read", sourceIp: "127.0.0.1,::1",
      resources: [{ type: "account", ids: ["10000"] }],
    })));
    assert.equal(made.type, "apiToken");
    assert.match(made.id, /^[1-9]\d*$/);
    assert.match(made.attributes.token, /^tw_[0-9A-Za-z]{38}$/);
    assert.equal(made.attributes.sourceIp, "127.0.0.1,::1");
    assert.match(made.attributes.createdAt, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
  });
  await step("list", async () => {
    const { data } = await mine.list(USER);
    const listed = data.find((t) => t.id === made.id);
    assert.equal(listed.attributes.description, "made by the SDK");
    assert.equal(listed.attributes.expiration, made.attributes.expiration);
    assert.equal(listed.attributes.token, undefined);
  });
  await step("use what was made", async () => {
    const { data } = await tokens(made.attributes.token).list(USER);
    assert.deepEqual(data.map((t) => t.id), [made.id]); // it is restricted, and sees what is no wider
  });
  await step("validation failure", async () => {
    const errors = await failure(mine.create(USER, request({ expiration: "yesterday", sourceIp: "1.2.3", scope: "boats" })), "400", "invalid_value");
    assert.deepEqual(errors.map((e) => e.source.pointer).sort(), [
      "/data/attributes/expiration", "/data/attributes/scope", "/data/attributes/sourceIp",
    ]);
  });
  await step("missing scope", async () => {
    const theirs = tokens(WITHOUT_SCOPE);
    await failure(theirs.list(USER), "403", "forbidden");
    await failure(theirs.create(USER, request({})), "403", "forbidden");
    await failure(theirs.revoke(USER, made.id), "403", "forbidden");
  });
  await step("unknown id", async () => {
    await failure(mine.revoke(USER, "999999999"), "400", "not_found");
  });
  if (!ROOT) {
    await step("another user", async () => {
      await failure(mine.list("4711"), "403", "forbidden");
    });
    await step("more than the caller has", async () => {
      await failure(mine.create(USER, request({ scope: "accounts cards" })), "403", "forbidden");
    });
  }
  await step("grace period", async () => {
    const { data: old } = await mine.create(USER, request({ scope: "accounts user:api-token:read user:api-token:write" }));
    const reset = await fetch(`${ADMIN}/v1/tokens/${old.id}/reset`, { method: "POST", headers: { "Api-Token": SECRET } }); // a verb that this API lacks
    assert.equal(reset.status, 200);
    const next = await reset.json();
    const theirs = tokens(old.attributes.token);
    assert.deepEqual((await theirs.list(USER)).data.map((t) => t.id), [old.id]); // it sees itself alone
    await failure(theirs.create(USER, request({})), "403", "forbidden");
    assert.equal((await theirs.revoke(USER, old.id)).data.id, old.id);
    await failure(theirs.list(USER), "401", "unauthorized");
    await tokens(next.token).revoke(USER, String(next.id));
  });
  await step("wrong token", async () => {
    await failure(tokens("tw_wrong").list(USER), "401", "unauthorized");
  });
  await step("revoke", async () => {
    const { data } = await mine.revoke(USER, made.id);
    assert.equal(data.id, made.id);
    await failure(tokens(made.attributes.token).list(USER), "401", "unauthorized");
  });
  await step("revoke twice", async () => {
    await failure(mine.revoke(USER, made.id), "400", "not_found");
  });
  console.log("end");
});
