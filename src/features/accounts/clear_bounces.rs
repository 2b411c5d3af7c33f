//! The script `clear-bounces`, a sample of what `admin run` runs.

use futures_util::FutureExt;

use crate::app::Script;

pub const SCRIPT: Script = Script {
    name: "clear-bounces",
    about: "Forget which addresses the mail server refused, after it refused them by mistake",
    run: |transaction| {
        let cleared = sqlx::query!("UPDATE accounts SET bounced_at = NULL WHERE bounced_at IS NOT NULL");
        async move { Ok(cleared.execute(transaction).await?.rows_affected()) }.boxed()
    },
};
