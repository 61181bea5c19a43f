// Drives every token call of mailtrap.
"use strict";

const { MailtrapClient } = require("mailtrap");
const { assert, step, refused, until, main } = require("./steps");

const { SECRET, WITHOUT_SCOPE, ACCOUNT, ROOT } = process.env;
const accountId = Number(ACCOUNT);
const tokens = (token, account = accountId) => new MailtrapClient({ token, accountId: account }).general.apiTokens;
const resources = [{ resource_type: "account", resource_id: accountId, access_level: 100 }];

// failure checks the text that the client makes of an error.
async function failure(promise, text) {
  const e = await refused(promise);
  assert.equal(e.constructor.name, "MailtrapError");
  assert.equal(e.message, text);
}

main(async () => {
  const mine = tokens(SECRET);
  let made;
  let next;

  await step("create", async () => {
    made = await mine.create({ name: "made by the SDK", resources, expires_at: "2029-12-31T23:59:59Z" });
    assert.deepEqual(Object.keys(made), ["resources", "id", "name", "last_4_digits", "created_by", "expires_at", "token"]);
    assert.equal(made.expires_at, "2029-12-31T23:59:59Z");
    assert.deepEqual(made.resources, resources);
    assert.equal(made.last_4_digits, made.token.slice(-4));
  });
  await step("list", async () => {
    const listed = (await mine.getList()).find((t) => t.id === made.id);
    assert.equal(listed.name, "made by the SDK");
    assert.equal(listed.token, undefined);
  });
  await step("get", async () => {
    const { token, ...shown } = made;
    assert.deepEqual(await mine.get(made.id), shown);
  });
  await step("use what was made", async () => {
    assert.ok((await tokens(made.token).getList()).some((t) => t.id === made.id));
  });
  await step("never ends", async () => {
    const forever = await mine.create({ name: "forever", resources, expires_at: null });
    assert.equal(forever.expires_at, null);
    await mine.delete(forever.id);
  });
  await step("validation failure", async () => {
    await failure(mine.create({ name: "x" }), "No permissions selected. Please choose at least one.");
    await failure(mine.create({ name: " ", resources }), "can't be blank");
    await failure(mine.create({ name: "x", resources, expires_at: "2020-01-01T00:00:00Z" }), "expires_at: must be in the future");
  });
  await step("missing scope", async () => {
    const theirs = tokens(WITHOUT_SCOPE);
    await failure(theirs.getList(), "Account access forbidden");
    await failure(theirs.get(made.id), "Account access forbidden");
    await failure(theirs.create({ name: "x", resources }), "Account access forbidden");
    await failure(theirs.reset(made.id), "Account access forbidden");
    await failure(theirs.delete(made.id), "Account access forbidden");
  });
  await step("unknown id", async () => {
    await failure(mine.get(999999999), "Not Found");
    await failure(mine.reset(999999999), "Not Found");
    await failure(mine.delete(999999999), "Not Found");
    await failure(mine.get(-1), "Not Found");
  });
  if (!ROOT) {
    await step("another account", async () => {
      await failure(tokens(SECRET, 4711).getList(), "Account access forbidden");
    });
  }
  await step("wrong token", async () => {
    await failure(tokens("tw_wrong").getList(), "Incorrect API token");
  });
  await step("reset", async () => {
    next = await mine.reset(made.id);
    assert.equal(next.name, `made by the SDK ${next.id}`);
    assert.notEqual(next.token, made.token);
    assert.deepEqual(next.resources, made.resources);
  });
  await step("grace period", async () => {
    const old = tokens(made.token);
    assert.deepEqual((await old.getList()).map((t) => t.id), [made.id]); // it sees itself alone
    await failure(old.create({ name: "x", resources }), "Account access forbidden");
    assert.ok((await tokens(next.token).getList()).length > 1);
  });
  await step("reset twice", async () => {
    await failure(mine.reset(made.id), "The token has been reset already.");
  });
  await step("end of the grace period", async () => {
    await until("the old token outlives its grace period", async () => {
      try {
        await tokens(made.token).getList();
        return false;
      } catch (e) {
        assert.equal(e.message, "Incorrect API token");
        return true;
      }
    });
  });
  await step("reset with an end", async () => {
    const last = await mine.reset(next.id, { expires_at: "2028-01-01T00:00:00Z" });
    assert.equal(last.expires_at, "2028-01-01T00:00:00Z");
    await mine.delete(last.id);
  });
  await step("delete in the grace period", async () => {
    assert.equal(await mine.delete(next.id), "");
    await failure(tokens(next.token).getList(), "Incorrect API token");
  });
  await step("delete twice", async () => {
    await failure(mine.delete(next.id), "Not Found");
  });
  console.log("end");
});
