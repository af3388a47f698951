// A row of buttons, one of which is selected. Emits pick {key}.

export default {
  template: `
    <div class="ac-segments" role="group" :aria-label="label">
      <span aria-hidden="true">{{ label }}</span>
      <button v-for="option in options" :key="option.key" type="button" :data-key="option.key"
              :aria-pressed="option.key === value ? 'true' : 'false'" @click="$emit('pick', { key: option.key })">{{ option.name }}</button>
    </div>`,
  props: { label: String, options: Array, value: String },
};
