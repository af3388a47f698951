// What this user did, newest first, and what each deed did to the list. Emits undo {event_id}.

const VERBS = { view: "viewed", click: "opened", like: "liked", basket: "added to basket", purchase: "bought", skip: "skipped", review: "reviewed", undo: "took back" };

export default {
  template: `
    <section class="ac-panel ac-timeline" aria-labelledby="timeline-title">
      <h2 id="timeline-title">What you did, and what it changed</h2>
      <ol v-if="rows.length" data-testid="timeline">
        <li v-for="row in rows" :key="row.id" v-memo="[row.effect, row.position, row.ms, row.failed, row.undone]" :class="['did-' + row.action, {failed: row.failed, undone: row.undone}]" :data-event="row.id">
          <p class="ac-deed" :title="row.title"><b>{{ verbs[row.action] || row.action }}</b> {{ row.title }}<span v-if="row.undone" class="ac-sr"> (taken back)</span></p>
          <p v-if="row.failed" class="ac-effect">did not arrive: the log is away</p>
          <p v-else-if="row.effect" class="ac-effect">{{ row.effect }}</p>
          <p v-else-if="row.position" class="ac-effect waiting">in the log, waiting for the list…</p>
          <code v-if="row.position" :title="'Where the event lies in Kafka: topic/partition/offset'">{{ row.position }}</code><code v-if="row.ms !== null" title="From the click to the new list, at the page's server"> · {{ row.ms }} ms</code>
          <button v-if="row.can_undo" type="button" class="ac-undo" :aria-label="'Undo: ' + (verbs[row.action] || row.action) + ' ' + row.title"
                  @click="$emit('undo', { event_id: row.id })">undo</button>
        </li>
      </ol>
      <p v-else class="ac-empty">Nothing yet. Like something and watch the list.</p>
    </section>`,
  props: { rows: Array },
  data() {
    return { verbs: VERBS };
  },
};
