// The actions of this user, newest first, and the effect of each on the list. Emits undo {event_id}.

export default {
  template: `
    <section class="ac-panel ac-timeline" aria-labelledby="timeline-title">
      <h2 id="timeline-title">Your actions and their effects</h2>
      <ol v-if="rows.length" data-testid="timeline">
        <li v-for="row in rows" :key="row.id" v-memo="[row.effect, row.position, row.ms, row.failed, row.undone]" :class="['did-' + row.action, {failed: row.failed, undone: row.undone}]" :data-event="row.id">
          <p class="ac-action-title" :title="row.title"><b>{{ row.verb }}</b> {{ row.title }}<span v-if="row.undone" class="ac-sr"> (undone)</span></p>
          <p v-if="row.failed" class="ac-effect">not sent: the log is unavailable</p>
          <p v-else-if="row.effect" class="ac-effect">{{ row.effect }}</p>
          <p v-else-if="row.position" class="ac-effect waiting">in the log, waiting for the new list…</p>
          <code v-if="row.position" title="Position of the event in Kafka: topic/partition/offset">{{ row.position }}</code><code v-if="row.ms !== null" title="From the click to the new list, measured at the page server"> · {{ row.ms }} ms</code>
          <button v-if="row.can_undo" type="button" class="ac-undo" :aria-label="'Undo: ' + row.verb + ' ' + row.title"
                  @click="$emit('undo', { event_id: row.id })">undo</button>
        </li>
      </ol>
      <p v-else class="ac-empty">No actions yet. Like an item and watch the list.</p>
    </section>`,
  props: { rows: Array },
};
