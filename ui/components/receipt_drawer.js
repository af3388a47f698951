// The receipt of an item in a native dialog: Escape closes it, and the focus returns to the opener.

export default {
  template: `
    <dialog ref="dialog" class="ac-drawer" aria-labelledby="receipt-title" @click.self="$refs.dialog.close()" data-testid="receipt">
      <div v-if="receipt">
        <header><h2 id="receipt-title">Why {{ receipt.title }}?</h2>
          <button type="button" class="ac-button" autofocus @click="$refs.dialog.close()">Close</button></header>
        <p class="ac-lead">{{ receipt.reason }}</p>
        <p v-if="receipt.left_out" class="ac-fallback" data-testid="left-out">Not in your lists, because you have already acted on it. This would be its score.</p>
        <p v-if="receipt.confidence" class="ac-confidence-line" data-testid="receipt-confidence"><b>{{ receipt.confidence.words }}</b> {{ receipt.confidence.what }}</p>
        <table class="ac-receipt">
          <caption class="ac-sr">Contributions to the score</caption>
          <tbody><tr v-for="part in receipt.contributions" :key="part.name" :class="'part-' + part.name" :data-part="part.name">
            <th scope="row">{{ part.label }}<small>{{ part.what }}</small></th>
            <td class="ac-diverging"><i :class="{minus: part.value < 0}" :style="{width: part.width + '%'}"></i></td>
            <td class="num">{{ signed(part.value) }}</td>
          </tr></tbody>
          <tfoot><tr><th scope="row">Score</th><td class="ac-check">{{ receipt.adds_up ? 'sum of the contributions' : 'not the sum of the contributions' }}</td>
            <td class="num" data-testid="receipt-score">{{ receipt.score.toFixed(3) }}</td></tr></tfoot>
        </table>
        <template v-if="receipt.attributions">
          <h3>Actions that changed the score most</h3>
          <ul v-if="receipt.attributions.length" class="ac-attributions" data-testid="attributions"><li v-for="action in receipt.attributions"><b class="num" :class="{minus: action.effect < 0}">{{ signed(action.effect) }}</b> {{ action.verb }} {{ action.title }}</li></ul>
          <p v-else class="ac-empty">None: the score would be the same without them.</p>
        </template>
        <h3>Your actions in this state</h3>
        <ol v-if="receipt.actions.length" class="ac-user-actions"><li v-for="action in receipt.actions">{{ action.verb }} {{ action.title }} <code v-if="action.position">{{ action.position }}</code></li></ol>
        <p v-else class="ac-empty">None yet.</p>
        <h3>Model and state</h3>
        <dl class="ac-facts">
          <div><dt>model</dt><dd>{{ receipt.model_version }}</dd></div>
          <div><dt>list</dt><dd>{{ receipt.list_source }}</dd></div>
          <div><dt>candidate source</dt><dd>{{ receipt.source }}</dd></div>
          <div v-if="receipt.impression_id"><dt>impression</dt><dd><code>{{ receipt.impression_id }}</code></dd></div>
          <div v-for="row in receipt.as_of" :key="row.partition"><dt>counted up to</dt><dd><code>{{ row.partition }}/{{ row.offset }}</code></dd></div>
        </dl>
      </div>
    </dialog>`,
  props: { receipt: Object },
  methods: {
    async open() {
      await this.$nextTick();
      if (!this.$refs.dialog.open) this.$refs.dialog.showModal();
    },
    signed(value) {
      return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
    },
  },
};
